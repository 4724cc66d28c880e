"""What a tool wrote is in no loss, no baseline, no guard and no metric: other tokens in its place change nothing.

Two samples of one prompt and one of another; tools stand in the middle, at the end, and padding behind.
"""

import dataclasses
import math

import pytest
import torch

from verl_ext.method.policy_loss import aggregate
from verl_ext.method.reverse_kl import teacher_kl
from verl_ext.trainer.advantages import Samples, advantages, guard, with_controlled_teacher
from verl_ext.trainer.config import CONTROLS, GuardsConfig, MethodConfig, TaskRewardConfig
from verl_ext.trainer.losses import effective_sample_size, under_current_student
from verl_ext.trainer.tool_metrics import answer_lengths, kl_by_turn, turn_of_BT

MASK = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]])
METHODS = {
    "default": {},
    "discounted": {"discount": 0.5},
    "of a sequence": {"normalization": "sequence"},
    "clipped": {"clip": 0.5},
    "group baseline": {"baseline": "group"},
    "batch baseline": {"baseline": "batch", "discount": 0.5},
    "task reward": {"task_reward": TaskRewardConfig(coef=1.0)},
    "reference": {"guards": GuardsConfig(reference_kl_coef=0.1)},
}
GUARDS = {
    "none": GuardsConfig(),
    "repetition": GuardsConfig(repetition_ngram=2),
    "special": GuardsConfig(special_token_mask=[5]),
    "prefix": GuardsConfig(prefix_steps=4, prefix_start=0.5),
    "truncated": GuardsConfig(truncated_mask=True),
}


def samples(seed: int) -> Samples:
    """The same samples for every seed, but for what stands where the mask is 0."""
    draw = torch.Generator().manual_seed(7)
    fixed = {name: -torch.rand(MASK.shape, generator=draw) for name in ("student", "teacher", "reference")}
    ids = torch.randint(2, 9, MASK.shape, generator=draw)
    noise = torch.Generator().manual_seed(seed)
    other = {name: -9 * torch.rand(MASK.shape, generator=noise) for name in fixed}
    keep = MASK.bool()
    logprobs = {name: torch.where(keep, fixed[name], other[name]) for name in fixed}
    return Samples(
        token_ids_BT=torch.where(keep, ids, torch.randint(2, 9, MASK.shape, generator=noise)),
        mask_BT=MASK,
        lengths_B=torch.tensor([6, 5, 3]),
        truncated_B=torch.tensor([False, True, False]),
        student_logprobs_BT=logprobs["student"],
        teacher_logprobs_BT=logprobs["teacher"],
        rewards_B=torch.tensor([1.0, 0.0, 1.0]),
        groups_B=torch.tensor([0, 0, 1]),
        reference_logprobs_BT=logprobs["reference"],
    )


def made_of(
    given: Samples, *, method: str = "default", guards: str = "none", control: str = "none"
) -> dict[str, float]:
    """Advantages, losses and metrics, by name."""
    settings = MethodConfig(**METHODS[method], control=control)
    taught = with_controlled_teacher(given, control, step=1, vocabulary=9)
    guarded, found = guard(taught, GUARDS[guards], step=1)
    advantages_BT, more = advantages(guarded, settings)
    keep = guarded.mask_BT.bool()
    assert (advantages_BT[~keep] == 0).all()
    ratio_BT = torch.exp(0.9 * given.student_logprobs_BT - given.student_logprobs_BT)
    loss = aggregate(-ratio_BT * advantages_BT, guarded.mask_BT, "token-mean", batch_num_tokens=int(keep.sum()))
    lengths = [{"sampled_tokens": int(row.sum())} for row in given.mask_BT]
    kl = teacher_kl(taught.student_logprobs_BT, taught.teacher_logprobs_BT, taught.mask_BT)
    turns = kl_by_turn(taught.student_logprobs_BT, taught.teacher_logprobs_BT, taught.mask_BT)
    trained = {f"advantage {place}": value for place, value in enumerate(advantages_BT[keep].tolist())}
    size = effective_sample_size(ratio_BT, guarded.mask_BT)
    return {"loss": loss.item(), "kl": kl, "size": size} | trained | found | more | turns | answer_lengths(lengths)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guards", GUARDS)
def test_what_a_tool_wrote_changes_nothing(method, guards):
    found = [made_of(samples(seed), method=method, guards=guards) for seed in (1, 2)]
    assert found[0] == pytest.approx(found[1])
    assert all(map(math.isfinite, found[0].values()))


@pytest.mark.parametrize("control", CONTROLS)
def test_nor_under_a_control(control):
    assert made_of(samples(1), control=control) == pytest.approx(made_of(samples(2), control=control))


@pytest.mark.parametrize("method", METHODS)
def test_with_a_mask_of_ones_it_would(method):
    """The test above can fail: the same samples, of which every token counts."""
    both = [dataclasses.replace(samples(seed), mask_BT=torch.ones_like(MASK)) for seed in (1, 2)]
    assert made_of(both[0], method=method) != pytest.approx(made_of(both[1], method=method))


def test_the_current_students_charge_is_of_sampled_tokens():
    settings = MethodConfig(student_logprobs="current")
    moved = [
        under_current_student(
            torch.zeros(MASK.shape), given.student_logprobs_BT * 0.5, given.student_logprobs_BT, MASK, settings=settings
        )
        for given in (samples(1), samples(2))
    ]
    torch.testing.assert_close(*moved)


def test_a_turn_ends_where_others_write():
    assert turn_of_BT(MASK).tolist() == [[1, 1, 0, 0, 2, 2], [1, 0, 2, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert kl_by_turn(*(torch.ones(1, 3),) * 2, torch.tensor([[1, 1, 0]])) == {}
