"""The demo's picture and the README's sample are made of the numbers of a run."""

from pathlib import Path

from benchmarks.readme_sample import sample_of
from verl_ext.demo.picture import draw

ROWS = [{"step": step, "teacher_kl": 3.0 / step, "critic/rewards/mean": 1 - 1 / step} for step in (1, 2, 3)]
EVALUATION = {"base": {"accuracy": 0.125}, "teacher": {"accuracy": 0.875}, "student": {"accuracy": 0.75}}


def test_the_picture_shows_each_arm_and_is_the_same_for_the_same_numbers(tmp_path: Path):
    for name in ("one.svg", "two.svg"):
        draw(ROWS, EVALUATION, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert [text.count(f"<!-- {arm['accuracy']:.3f} -->") for arm in EVALUATION.values()] == [1, 1, 1]


def test_the_sample_keeps_the_ends_of_the_run_and_the_table():
    log = ["$ python -m recipe.demo", "[   9.1 s] Ray is up", "[  20.0 s] ... loading", "[  25.0 s] step 1: prompts"]
    log += [f"[  {30 + step}.0 s] step {step}/9  teacher_kl +1.0000" for step in range(1, 10)]
    log += [
        "",
        "  arm       prompt       accuracy (95 %)  ",
        " ─────── ",
        "  base          no   0.1 ",
        "  teacher      yes   0.9 ",
    ]
    log += ["  student       no   0.9 ", "", "another table"]
    text = sample_of("\n".join(log), {"seconds_total": 300.0}, "abc1234")
    assert "(commit `abc1234`, 2 cores, environments already there; 5 minutes in all)" in text
    shown = text.split("```")[1].strip("\n").splitlines()
    assert [line[11:20].strip() for line in shown[:6]] == [
        "Ray is up",
        "step 1/9",
        "step 2/9",
        "step 3/9",
        "",
        "step 9/9",
    ]
    assert shown[4] == "..."
    assert shown[-1] == "  student       no   0.9"
    assert len(shown) == 12
