"""Our advantage against golden values of tinker-cookbook's own function (`tests/golden/make_tinker_kl.py`)."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from verl_ext.method.reverse_kl import reverse_kl_advantage, teacher_kl

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tinker_kl.json").read_text())
CASES = GOLDEN["cases"]
TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}  # fp32; the two add up a discounted sum in different orders


def padded(rows: list[list[float]], value: float = 0.0) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def inputs(case: dict) -> dict[str, torch.Tensor]:
    """The batch's rows as (B, T), padding full of what must not show."""
    rows = GOLDEN["batches"][case["batch"]]
    return {
        "rollout_logprobs": padded([row["rollout_logprobs"] for row in rows], float("nan")),
        "teacher_logprobs": padded([row["teacher_logprobs"] for row in rows], 9.0),
        "response_mask": padded([row["mask"] for row in rows]),
        "task_advantage": padded([row["task_advantage"] for row in rows]),
    }


def advantages(case: dict, mode: str) -> torch.Tensor:
    return reverse_kl_advantage(**inputs(case), coef=case["coef"], discount=case["discount"], discount_mode=mode)


def name(case: dict) -> str:
    return f"{case['batch']}-{case['coef']}-{case['discount']}"


def test_the_golden_values_cover_what_can_differ():
    assert GOLDEN["versions"]["tinker-cookbook"] == "0.6.1"
    assert {case["coef"] for case in CASES} == {0.5, 1.0, 2.0}
    assert {case["discount"] for case in CASES} == {0.0, 0.5, 0.9, 1.0}
    masked = [padded(case["advantages"])[inputs(case)["response_mask"] == 0] for case in CASES if case["discount"] > 0]
    assert any(values.abs().max() > 0.1 for values in masked), "Tinker's leak onto masked tokens is in them"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_strict_is_tinkers(case):
    torch.testing.assert_close(advantages(case, "strict"), padded(case["advantages"]), **TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_fixed_is_tinkers_where_the_student_sampled_and_zero_elsewhere(case):
    wanted = padded(case["advantages"]) * inputs(case)["response_mask"]
    torch.testing.assert_close(advantages(case, "fixed"), wanted, **TOLERANCE)
    if case["discount"] == 0:
        torch.testing.assert_close(wanted, padded(case["advantages"]), **TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_teacher_kl_is_tinkers(case):
    given = inputs(case)
    given.pop("task_advantage")
    assert teacher_kl(**given) == pytest.approx(case["teacher_kl"], abs=1e-6)
