"""The rows of the real model: what each side sees, and that no word is on both sides."""

import json
import sys

import pytest

from recipe.create_data import main as create_data
from verl_ext.data.rows import check_rows
from verl_ext.demo.plurals import SHOWN, main, plural

NOUNS = {"day": "days", "city": "cities", "bus": "buses", "bench": "benches", "dish": "dishes", "box": "boxes"}


@pytest.mark.parametrize(("noun", "answer"), NOUNS.items())
def test_the_rule_of_a_plural(noun: str, answer: str) -> None:
    assert plural(noun) == answer


def test_the_teacher_sees_examples_and_the_student_the_question(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plurals", f"{tmp_path}/plurals.jsonl"])
    main()
    words = ("source=verl", f"sentences={tmp_path}/plurals.jsonl", "heldout_fraction=0.25", f"out_dir={tmp_path}/data")
    monkeypatch.setattr(sys, "argv", ["create_data", *words])
    create_data()
    train, heldout = (check_rows("data", f"{tmp_path}/data/{name}.parquet") for name in ("train", "heldout"))
    asked = [{row["prompt"][-1]["content"] for row in part} for part in (train, heldout)]
    assert not asked[0] & asked[1]
    assert [len(part) for part in asked] == [len(train), len(heldout)]
    assert len(train) + len(heldout) == len((tmp_path / "plurals.jsonl").read_text().splitlines())
    rows = {row["prompt"][-1]["content"]: row for row in (*train, *heldout)}
    assert not {f"What is the plural of {noun}?" for noun in SHOWN} & rows.keys()
    row = rows["What is the plural of mouse?"]
    assert row["prompt"] == row["teacher_messages"][-1:]
    assert [turn["content"] for turn in row["teacher_messages"][1:8:2]] == ["dogs", "lamps", "wishes", "pennies"]
    assert (row["label"], row["reward_model"]["ground_truth"], row["data_source"]) == ("mice", "mice", "plurals")
    labels = [json.loads(line)["reward_model"] for line in (tmp_path / "plurals.jsonl").open()]
    assert labels.count({"style": "rule", "ground_truth": "mice"}) == 1
