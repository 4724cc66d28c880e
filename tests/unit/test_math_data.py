"""Our mathematics sample, and the reward that reads an answer out of a response."""

from pathlib import Path

import pytest

from recipe.create_data import CreateDataConfig, create
from verl_ext import data, preflight
from verl_ext.trainer.reward import math_match

SAMPLE = Path(__file__).parents[2] / "data" / "math_sample.jsonl"


def test_every_sample_has_an_answer_that_its_own_solution_matches():
    problems = data.file_sentences(SAMPLE)
    assert len(problems) == len({problem.text for problem in problems}) == 20
    assert all(math_match(f"So it is \\boxed{{{problem.label}}}.", problem.label) == 1.0 for problem in problems)


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        ("\\boxed{1} no, \\boxed{43}", "43", 1.0),
        ("\\boxed{\\dfrac{3}{4}}", "\\frac{3}{4}", 1.0),
        ("\\boxed{44}", "43", 0.0),
        ("43", "43", 0.0),
        ("\\boxed{43", "43", 0.0),
        ("\\boxed{}", "", 0.0),
    ],
)
def test_the_last_box_counts(text, truth, expected):
    assert math_match(text, truth) == expected


def test_rows_are_what_the_training_checks(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Reason step by step.\n{text}")
    create(
        CreateDataConfig(
            out_dir=str(tmp_path / "out"), source="file", sentences=str(SAMPLE), prompt=str(prompt), data_source="math"
        )
    )
    rows = preflight.check_rows("data.train_files", str(tmp_path / "out" / "train.parquet"))
    assert {row["data_source"] for row in rows} == {"math"}
    assert rows[0]["teacher_messages"][0]["content"].startswith("Reason step by step.\n")
