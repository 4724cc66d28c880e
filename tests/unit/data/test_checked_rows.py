"""Rows that cannot be trained on are refused, in one line that names the key, the file and the row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_student import ROW

from verl_ext.data.rows import check_rows


def write_rows(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_good_rows_are_returned(tmp_path):
    file = write_rows(tmp_path / "a.parquet", [ROW])
    assert check_rows("data.train_files", file) == [
        ROW | {"extra_info": {"language": "", "place": f"{file} row 0", "index": 0}}
    ]


def test_missing_teacher_messages(tmp_path):
    row = {key: value for key, value in ROW.items() if key != "teacher_messages"}
    with pytest.raises(
        ValueError,
        match=r"has no column teacher_messages; `python -m recipe\.create_data --from verl .*a\.parquet` adds",
    ):
        check_rows("data.train_files", write_rows(tmp_path / "a.parquet", [row]))


@pytest.mark.parametrize("content", ["", "  \n"])
def test_empty_prompt_names_the_row(tmp_path, content):
    bad = ROW | {"teacher_messages": [{"role": "user", "content": content}]}
    with pytest.raises(ValueError, match="row 1: teacher_messages is empty"):
        check_rows("data.train_files", write_rows(tmp_path / "a.parquet", [ROW, bad]))


def test_no_file_and_no_parquet(tmp_path):
    with pytest.raises(ValueError, match=r"no such file; make it with"):
        check_rows("data.val_files", str(tmp_path / "none.parquet"))
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="is no parquet file"):
        check_rows("data.val_files", str(tmp_path / "text.parquet"))
