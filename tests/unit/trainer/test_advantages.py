"""What a step makes of its samples, by hand: two samples of one prompt and one of another, at most three tokens."""

import pytest
import torch

from verl_ext.trainer.advantages import Samples, advantages, guard, with_controlled_teacher
from verl_ext.trainer.config import GuardsConfig, MethodConfig, TaskRewardConfig

NAN = float("nan")
SAMPLES = Samples(
    token_ids_BT=torch.tensor([[5, 5, 5], [6, 7, 0], [8, 0, 0]]),
    mask_BT=torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]),
    lengths_B=torch.tensor([3, 2, 1]),
    truncated_B=torch.tensor([True, False, False]),
    student_logprobs_BT=torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -1.0, NAN], [-1.0, NAN, NAN]]),
    teacher_logprobs_BT=torch.tensor([[-2.0, -1.0, -4.0], [-1.0, -1.0, NAN], [-3.0, NAN, NAN]]),
    rewards_B=torch.tensor([1.0, 0.0, 1.0]),
    groups_B=torch.tensor([0, 0, 1]),
)
REVERSE_KL = [[1.0, 0.0, 3.0], [-1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]


def found(samples: Samples = SAMPLES, **settings) -> list[list[float]]:
    advantages_BT, _ = advantages(samples, MethodConfig(**settings))
    return [[round(value, 5) for value in row] for row in advantages_BT.tolist()]


def negated(rows: list[list[float]]) -> list[list[float]]:
    return [[0.0 - value for value in row] for row in rows]


def test_the_default_is_the_negative_reverse_kl():
    assert found() == negated(REVERSE_KL)


def test_metrics_count_trained_tokens_only():
    _, metrics = advantages(SAMPLES, MethodConfig())
    assert metrics["advantage/mean"] == pytest.approx(-5 / 6)
    assert metrics["advantage/variance"] == pytest.approx(15 / 6 - 25 / 36)


def test_the_shape_of_the_charge():
    assert found(coef=2.0, clip=1.5) == [[-2.0, 0.0, -3.0], [2.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]
    assert found(discount=0.5) == [[-1.75, -1.5, -3.0], [1.0, 0.0, 0.0], [-2.0, 0.0, 0.0]]
    assert found(normalization="sequence")[0] == [round(-1 / 3, 5), 0.0, -1.0]


def test_a_group_baseline_is_the_mean_over_the_other_samples_of_the_prompt():
    # First prompt: 4 / 3 over the first sample's tokens, -1 / 2 over the second's. The other sample stands alone.
    assert found(baseline="group") == [
        [-1.5, -0.5, -3.5],
        [round(1 + 4 / 3, 5), round(4 / 3, 5), 0.0],
        [-2.0, 0.0, 0.0],
    ]


def test_a_baseline_is_the_mean_of_what_the_others_are_charged():
    """Clipped and discounted: 1.375, 0.75, 1.5 in the first sample, -1, 0 in the second."""
    first, second, alone = found(baseline="group", discount=0.5, clip=1.5)
    assert first == [-1.375 - 0.5, -0.75 - 0.5, -1.5 - 0.5]
    assert second == [round(1 + 3.625 / 3, 5), round(3.625 / 3, 5), 0.0]
    assert alone == [-1.5, 0.0, 0.0]


def test_a_batch_baseline_is_the_mean_over_all_other_samples():
    assert found(baseline="batch")[2] == [round(-2 + 3 / 5, 5), 0.0, 0.0]


def test_the_task_reward_is_centred_in_its_group():
    assert found(coef=0.0, task_reward=TaskRewardConfig(coef=2.0)) == [[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0], [0.0] * 3]


def test_the_reference_pulls_the_student_back():
    reference_BT = torch.tensor([[-1.5, -1.0, -1.0], [-2.0, -1.0, NAN], [-1.0, NAN, NAN]])
    samples = Samples(**(vars(SAMPLES) | {"reference_logprobs_BT": reference_BT}))
    method = MethodConfig(coef=0.0, guards=GuardsConfig(reference_kl_coef=2.0))
    advantages_BT, metrics = advantages(samples, method)
    assert advantages_BT.tolist() == [[-1.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert metrics["guards/reference_kl"] == pytest.approx(0.5 / 6)


def test_controls():
    assert found(control="flipped_sign") == REVERSE_KL
    assert found(control="constant_negative", coef=0.5) == [[-0.5] * 3, [-0.5, -0.5, 0.0], [-0.5, 0.0, 0.0]]


def taught(control: str, step: int = 0) -> torch.Tensor:
    return with_controlled_teacher(SAMPLES, control, step=step, vocabulary=10).teacher_logprobs_BT


def test_controlled_teachers():
    mask_BT = SAMPLES.mask_BT.bool()
    assert taught("none") is SAMPLES.teacher_logprobs_BT
    shuffled = taught("shuffled_teacher")[mask_BT]
    assert shuffled.sort().values.tolist() == SAMPLES.teacher_logprobs_BT[mask_BT].sort().values.tolist()
    assert any(taught("shuffled_teacher", step)[mask_BT].tolist() != shuffled.tolist() for step in range(1, 9))
    assert torch.equal(taught("random_teacher", 0), taught("random_teacher", 1))
    assert len(taught("random_teacher")[0].unique()) == 1  # one distribution: a token has one log-prob
    assert torch.equal(taught("teacher_is_student")[mask_BT], SAMPLES.student_logprobs_BT[mask_BT])


def guarded(step: int = 0, **settings) -> tuple[list[list[int]], dict[str, float]]:
    samples, metrics = guard(SAMPLES, GuardsConfig(**settings), step=step)
    return samples.mask_BT.tolist(), metrics


def test_no_guard_leaves_the_mask_itself():
    samples, metrics = guard(SAMPLES, GuardsConfig(), step=0)
    assert samples.mask_BT is SAMPLES.mask_BT
    assert metrics == {}


def test_guards_and_their_metrics():
    assert guarded(truncated_mask=True) == (
        [[0, 0, 0], [1, 1, 0], [1, 0, 0]],
        {"guards/truncated_share": pytest.approx(1 / 3)},
    )
    assert guarded(special_token_mask=[7, 8]) == (
        [[1, 1, 1], [1, 0, 0], [0, 0, 0]],
        {"guards/special_token_share": pytest.approx(2 / 6)},
    )
    mask, metrics = guarded(repetition_ngram=1, repetition_limit=0.5)
    assert mask == SAMPLES.mask_BT.tolist()
    assert metrics["guards/repetition_flagged"] == pytest.approx(1 / 3)


def test_the_prefix_grows_with_the_steps():
    assert guarded(step=0, prefix_steps=2, prefix_start=0.5)[0] == [[1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert guarded(step=2, prefix_steps=2, prefix_start=0.5)[0] == SAMPLES.mask_BT.tolist()


def test_masked_samples_do_not_enter_baselines_or_metrics():
    samples, _ = guard(SAMPLES, GuardsConfig(truncated_mask=True), step=0)
    assert found(samples, baseline="group")[1] == [1.0, 0.0, 0.0]
    _, metrics = advantages(samples, MethodConfig())
    assert metrics["advantage/mean"] == pytest.approx(-1 / 3)
