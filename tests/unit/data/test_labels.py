"""What a person would read in an answer, or "" where a person could not tell: label_cases.json, by hand."""

import itertools
import json
from pathlib import Path

import pytest

from verl_ext.data.conversations import read_label

GROUPS = json.loads((Path(__file__).parent / "label_cases.json").read_text(encoding="utf-8"))
CASES = [
    pytest.param(group["label_set"], group["extract"], answer, right, id=f"{group['extract']}-{answer!r}")
    for group in GROUPS
    for answer, right in group["answers"].items()
]


@pytest.mark.parametrize(("label_set", "extract", "answer", "right"), CASES)
def test_a_label_is_read_as_a_person_reads_it(label_set, extract, answer, right):
    found = read_label(answer, extract, "strict", label_set)
    assert (found.label, bool(found.reason)) == (right, not right)


def test_every_label_of_every_set_is_read_in_the_usual_dress():
    dresses = (
        "{}",
        "**{}**",
        "`{}`",
        '"{}"',
        "“{}”",
        "{}\n\nBecause of the words.",
        "\\boxed{{{}}}",
        "<b>{}</b>",
        "- {}",
    )
    places = (("whole", ""), ("final_answer", "Final Answer: "), ("final_answer", "**Final Answer:** "))
    ways = itertools.cycle(itertools.product(dresses, places))  # 27 ways, in turn over some thousand labels
    for label_set in dict.fromkeys(tuple(group["label_set"]) for group in GROUPS):
        for label in label_set:
            dress, (extract, marker) = next(ways)
            if dress == "- {}" and "-" in label_set:
                continue
            answer = marker + dress.format(label)
            assert read_label(answer, extract, "strict", label_set).label == label, answer


def test_a_character_that_stands_for_a_label_inside_the_reader_stands_for_none_in_an_answer():
    for character in ("\U000f0000", "\U000f0001", "\U00100000", "\U00100001", "\U0010fffd"):
        for answer in (f"yes. {character}", f"no, or rather {character}", f"The answer is {character}.", character):
            found = read_label(answer, "whole", "strict", ["yes", "no"])
            assert found.label in {"", "yes", "no"}
            assert (
                found.label == read_label(answer.replace(character, "\ufffd"), "whole", "strict", ["yes", "no"]).label
            )
