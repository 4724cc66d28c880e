"""What the teacher alone is shown of a row, as a user has it made: `verl-opd data`."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from verl_ext.data.create import RowsConfig, create_rows
from verl_ext.data.hub import HubConfig
from verl_ext.data.privileged import check_context

ROWS = [
    {"text": f"What is {i} + 1? {{context}}", "label": str(i + 1), "solution": f"{i} + 1 = {i + 1} {{text}}"}
    for i in range(4)
]
PROMPT = "A solution: {context}\nNow say the number alone: {text} {other}"


@pytest.fixture
def make(tmp_path: Path):
    def made(rows=ROWS, prompt: str = PROMPT, **settings) -> list[dict]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "prompt.txt").write_text(prompt)
        given = {"source": "file", "sentences": str(tmp_path / "rows.jsonl"), "context": "solution"}
        names = {"prompt": str(tmp_path / "prompt.txt"), "out_dir": str(tmp_path / "out"), "data_source": "sums"}
        create_rows(RowsConfig(**given | names | settings), tmp_path)
        return pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()

    return made


def check(rows: list[dict]) -> None:
    for row in rows:
        number = int(row["label"]) - 1
        asked = f"What is {number} + 1? {{context}}"
        assert row["prompt"] == [{"role": "user", "content": asked}]
        shown = f"A solution: {number} + 1 = {number + 1} {{text}}\nNow say the number alone: {asked} {{other}}"
        assert row["teacher_messages"] == [{"role": "user", "content": shown}]


def test_the_teacher_alone_is_shown_the_column(make):
    check(make())


def test_so_it_is_with_problems_of_the_hub(make, tmp_path):
    rows = [{"problem": row["text"], "answer": row["label"], "solution": row["solution"]} for row in ROWS]
    hub = HubConfig(path=str(tmp_path / "rows.jsonl"))
    check(make(rows, source="hub", sentences="", hub=hub))


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_row_without_it_is_refused_with_file_and_row(make, tmp_path, value):
    bad = [*ROWS[:2], ROWS[2] | {"solution": value}, ROWS[3]]
    with pytest.raises(ValueError, match=r"rows\.jsonl.*3.*: solution is missing, which context=solution shows"):
        make(bad)
    rows = [{"problem": row["text"], "answer": row["label"], "solution": row["solution"]} for row in bad]
    with pytest.raises(ValueError, match=r"rows\.jsonl row 2: solution is missing"):
        make(rows, source="hub", sentences="", hub=HubConfig(path=str(tmp_path / "rows.jsonl")))


def test_a_column_that_no_prompt_shows_is_refused(make):
    with pytest.raises(ValueError, match=r"context=solution: the teacher's prompt has no \{context\}"):
        make(prompt="Say the number alone: {text}")


def test_a_column_that_the_student_would_be_shown_is_refused(make, tmp_path):
    (tmp_path / "student.txt").write_text("{context} {text}")
    with pytest.raises(ValueError, match=r"student_prompt: has \{context\}, which the teacher alone"):
        make(student_prompt=str(tmp_path / "student.txt"))


def test_without_a_column_the_word_is_plain_text(make):
    rows = [{"text": row["text"], "label": row["label"]} for row in ROWS]
    assert make(rows, context="")[0]["teacher_messages"][0]["content"].startswith("A solution: {context}")


@pytest.mark.parametrize("source", ["tinker", "openai", "verl"])
def test_other_sources_have_no_such_column(source):
    with pytest.raises(ValueError, match=r"context=solution goes with source=file and source=hub"):
        check_context("solution", source, PROMPT, "{text}")


def test_other_solutions_to_the_same_problems_are_other_rows(make, tmp_path):
    def problems(solution: str) -> list[dict]:
        return [{"problem": row["text"], "answer": row["label"], "solution": solution} for row in ROWS]

    hub = {"source": "hub", "sentences": "", "hub": HubConfig(path=str(tmp_path / "rows.jsonl"))}
    make(problems("one"), **hub)
    with pytest.raises(ValueError, match=r"made with other settings|source_md5"):
        make(problems("other"), **hub)
