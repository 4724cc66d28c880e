"""Files as people's editors and exports make them: their text is exact, or an error names file, line and what to do."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe import PROMPTS
from verl_ext.data.conversations import from_jsonl
from verl_ext.data.hub import HubConfig, load_problems
from verl_ext.data.rows import read_prompt
from verl_ext.data.sentences import file_sentences
from verl_ext.data.text_files import records, value_as_text

TEXT = "Wie spät ist es? {text}\nJetzt."


def read_by_every_reader(path: Path, encode) -> list[str]:
    """What each reader of a text file makes of TEXT."""
    path.with_suffix(".txt").write_bytes(encode(TEXT))
    line = json.dumps(
        {"text": TEXT, "label": " de ", "messages": [{"role": "user", "content": TEXT}]}, ensure_ascii=False
    )
    only = {name: json.dumps({name: json.loads(line)[name]}, ensure_ascii=False) for name in ("text", "messages")}
    path.with_suffix(".jsonl").write_bytes(encode(only["messages"] + "\n"))
    (path.parent / "s.jsonl").write_bytes(encode(only["text"] + "\n"))
    (path.parent / "s.csv").write_bytes(encode(f'text,label\r\n"{TEXT}", de \r\n'))
    (path.parent / "h.json").write_bytes(encode(f"[{line}, {line.replace('spät', 'früh')}]"))
    problems = load_problems(HubConfig(path=str(path.parent / "h.json"), text="text", answer="label"), 0)
    (sentence,) = file_sentences(path.parent / "s.csv")
    assert sentence.label == problems.sentences[0].label == "de"
    return [
        read_prompt("prompt", str(path.with_suffix(".txt")), PROMPTS),
        "\n".join(sentence.text for sentence in file_sentences(path.with_suffix(".txt"))),
        from_jsonl(path.with_suffix(".jsonl"))[0]["messages"][0]["content"],
        file_sentences(path.parent / "s.jsonl")[0].text,
        sentence.text,
        problems.sentences[0].text,
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_part_of_the_text(tmp_path, encoding):
    assert set(read_by_every_reader(tmp_path / "a", lambda text: text.encode(encoding))) == {TEXT}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("eins\nzwei spät\n".encode("cp1252"), r"a\.txt:2: not UTF-8 \(byte 0xE4\); convert the file: iconv -f CP1252"),
        ("eins\nzwei\n".encode("utf-16-le"), r"a\.txt:1: holds a zero byte.*iconv -f UTF-16LE -t UTF-8 a\.txt"),
        (b"\xff\xfea", r"a\.txt:1: not UTF-16-LE"),
        (b"good\n\xc3\n", r"a\.txt:2: not UTF-8 \(byte 0xC3\)"),
    ],
)
def test_another_encoding_is_refused_with_file_line_and_command(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    for read in (file_sentences, lambda path: read_prompt("prompt", str(path), PROMPTS)):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_numbers_are_exact_and_missing_is_no_text(tmp_path):
    big = 2**70 + 1
    path = tmp_path / "p.jsonl"
    answers = [big, 0.1, "1e-8", 1e-8, None, 4.50, -3]
    path.write_text("".join(f'{{"problem": "p{i}", "answer": {json.dumps(a)}}}\n' for i, a in enumerate(answers)))
    with path.open("a") as file:
        file.write('{"problem": "nan", "answer": NaN}\n')
    found = load_problems(HubConfig(path=str(path)), 0)
    assert [p.label for p in found.sentences] == [str(big), "0.1", "1e-8", "0.00000001", "4.5", "-3"]
    assert found.counts["without_answer"] == 2


def test_a_column_of_floats_is_not_believed_beyond_its_precision(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"problem": ["a", "b", "c"], "answer": [2.0, float("nan"), 1e-8]}), path)
    found = load_problems(HubConfig(path=str(path)), 0)
    assert [p.label for p in found.sentences] == ["2.0", "0.00000001"]
    pq.write_table(pa.table({"problem": ["a", "b"], "answer": [2.0, float(2**60)]}), path)
    with pytest.raises(ValueError, match=r"hub\.answer=answer: row 1 is .*, a number that was rounded"):
        load_problems(HubConfig(path=str(path)), 0)


def test_rows_without_an_answer_are_taken_where_none_is_asked_for(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("problem\nfirst\nsecond\n")
    assert [p.label for p in load_problems(HubConfig(path=str(path), answer=""), 0).sentences] == ["", ""]
    with pytest.raises(
        ValueError, match=r"hub\.answer=answer: no such column; name one of problem; hub\.answer= for rows"
    ):
        load_problems(HubConfig(path=str(path)), 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,b,c\n", r"a\.csv:2: 3 values for 2 columns"),
        ("a.csv", "text;label\na;b\n", r'key "text"; found text;label'),
        ("a.csv", 'text\n"a\n', r"a\.csv:\d: not CSV"),
        ("a.csv", "one,de\n", r"a\.csv: holds no rows; the first line of a \.csv names its columns"),
        ("a.csv", "text,text\na,b\n", r"a\.csv:1: expected a header line"),
        ("a.json", '{"text": "a"}', r"a\.json: expected a list of objects, found an object"),
        ("a.json", '["a"]', r"a\.json row 0: expected an object, found a text"),
        ("a.json", "[{", r"a\.json: not JSON"),
        ("a.jsonl", '{"text": "\\ud800"}', r"a\.jsonl:1: half of a surrogate pair"),
        ("a.xlsx", "", r"expected a \.txt"),
    ],
)
def test_a_broken_file_names_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        file_sentences(path)


def test_csv_is_read_as_text(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\tgroup\none, two\t007\t3\nthree\t\t\n")
    assert [(s.text, s.label, s.group) for s in file_sentences(path)] == [("one, two", "007", 3), ("three", "", 5)]
    assert [record.place for record in records(path)] == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, float("inf")])
def test_what_is_no_answer_is_refused(value):
    with pytest.raises(ValueError, match="here is "):
        value_as_text("here", value)
