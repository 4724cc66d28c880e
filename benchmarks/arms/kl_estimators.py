"""The estimators and losses of `verl_ext.method` as draws in the laboratory, and the mistakes that resemble them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.arms.kl_direct import direct, direct_and_sampled_tail, rows_of, support
from benchmarks.arms.kl_laboratory import (
    Draws,
    Estimator,
    World,
    all_groups,
    gradient,
    make_world,
    policy_gradient_rows,
    row_gradients,
    scores,
    sequence_probs,
    state_kl,
    token_logprobs,
    visits,
)
from verl_ext.method.baselines import group_baseline
from verl_ext.method.controls import constant_negative_advantage, flipped_sign, student_as_teacher
from verl_ext.method.divergence import topk_divergence
from verl_ext.method.guards import reference_kl
from verl_ext.method.policy_loss import importance_sampling_loss, ppo_clip_loss, truncated_importance_sampling_loss
from verl_ext.method.reverse_kl import reverse_kl_advantage
from verl_ext.trainer.replay.buffer import PRIORITY_FLOOR


def logprob_pair(world: World, logits_SV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three positional arguments of `reverse_kl_advantage`, (N, T)."""
    rollout_NT = token_logprobs(world, logits_SV.log_softmax(-1))
    return rollout_NT, token_logprobs(world, world.teacher_SV), world.mask_NT


def full_baseline(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    return state_kl(world, logits_SV)[world.states_NT]


def topk_baseline(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    found = topk_divergence(logits_SV, *support(world), kind="reverse_kl", mix=0.0, tail=True)
    return found.expected_reverse_kl_N[world.states_NT]


def sampled_token_baseline(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    """The same over {teacher's best, sampled token}: a support that depends on the token, as some servers return."""
    states = world.states_NT.flatten()
    best = world.teacher_SV[states].argmax(-1)
    second = world.teacher_SV[states].topk(2).indices[:, 1]
    sampled = world.tokens_NT.flatten()
    ids = torch.stack((best, torch.where(sampled == best, second, sampled)), dim=1)
    teacher = world.teacher_SV[states].gather(1, ids)
    found = topk_divergence(logits_SV[states], ids, teacher, kind="reverse_kl", mix=0.0, tail=True)
    return found.expected_reverse_kl_N.reshape(world.states_NT.shape)


def population_baseline(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    """The mean over response tokens that the group baseline tends to in large groups."""
    visits_S = visits(world, logits_SV)
    return (visits_S @ state_kl(world, logits_SV) / visits_S.sum()).expand(world.tokens_NT.shape)


def sampled(world: World, logits_SV: torch.Tensor, *, baseline: Callable | None = None, **settings) -> Draws:
    """The sampled reverse KL as an advantage."""
    baseline_NT = None if baseline is None else baseline(world, logits_SV)
    advantages_NT = reverse_kl_advantage(*logprob_pair(world, logits_SV), baseline=baseline_NT, **settings)
    return rows_of(world, logits_SV, policy_gradient_rows(world, logits_SV, advantages_NT))


def baseline_before_sum(world: World, logits_SV: torch.Tensor) -> Draws:
    """The wrong order: each later token's baseline subtracted before the discounted sum."""
    rollout_NT, teacher_NT, mask_NT = logprob_pair(world, logits_SV)
    shifted_NT = teacher_NT + full_baseline(world, logits_SV)
    advantages_NT = reverse_kl_advantage(rollout_NT, shifted_NT, mask_NT, discount=1.0)
    return rows_of(world, logits_SV, policy_gradient_rows(world, logits_SV, advantages_NT))


def grouped(world: World, logits_SV: torch.Tensor, *, leave_one_out: bool, tokens: bool, size: int = 2) -> Draws:
    """Group baseline over every group of `size` rows: of tokens (discount 0) or of whole rows (discount 1)."""
    probs_M, rows = all_groups(world, logits_SV, size)
    groups = torch.arange(len(probs_M)).repeat_interleave(size)
    pair = logprob_pair(rows, logits_SV)
    discount = 0.0 if tokens else 1.0
    charge = -reverse_kl_advantage(*pair, discount=discount)
    if tokens:
        baseline = group_baseline(charge, groups, rows.mask_NT, leave_one_out=leave_one_out)
    else:
        # With discount 1 the first token is charged with the whole row.
        baseline = group_baseline(charge[:, 0], groups, leave_one_out=leave_one_out)[:, None].expand_as(charge)
    advantages = reverse_kl_advantage(*pair, discount=discount, baseline=baseline)
    rows_GP = policy_gradient_rows(rows, logits_SV, advantages)
    return Draws(probs_M, rows_GP.unflatten(0, (-1, size)).mean(1), rows=size)


def topk_kl_as_advantage(world: World, logits_SV: torch.Tensor) -> Draws:
    advantages_NT = -topk_baseline(world, logits_SV)
    return rows_of(world, logits_SV, policy_gradient_rows(world, logits_SV, advantages_NT))


def constant(world: World, logits_SV: torch.Tensor) -> Draws:
    advantages_NT = constant_negative_advantage(world.mask_NT, magnitude=1.0).double()
    return rows_of(world, logits_SV, policy_gradient_rows(world, logits_SV, advantages_NT))


def flipped(world: World, logits_SV: torch.Tensor) -> Draws:
    advantages_NT = flipped_sign(reverse_kl_advantage(*logprob_pair(world, logits_SV)))
    return rows_of(world, logits_SV, policy_gradient_rows(world, logits_SV, advantages_NT))


def own_teacher(world: World, logits_SV: torch.Tensor) -> Draws:
    rollout_NT, _, mask_NT = logprob_pair(world, logits_SV)
    advantages_NT = reverse_kl_advantage(rollout_NT, student_as_teacher(rollout_NT), mask_NT)
    return rows_of(world, logits_SV, policy_gradient_rows(world, logits_SV, advantages_NT))


def estimate_as_loss(world: World, logits_SV: torch.Tensor, *, kind: str) -> Draws:
    """k1, k2 or k3 of the sampled token, differentiated as a loss."""
    logprobs_NT = token_logprobs(world, logits_SV.log_softmax(-1)).detach().requires_grad_()
    total = torch.where(world.mask_NT, reference_kl(logprobs_NT, token_logprobs(world, world.teacher_SV), kind=kind), 0)
    slope_NT = torch.autograd.grad(total.sum(), logprobs_NT)[0]
    return rows_of(world, logits_SV, row_gradients(world, slope_NT[:, :, None] * scores(world, logits_SV)))


def tool_gradient(discount_mode: str) -> float:
    """Largest expected gradient that discount 1 gives to the choice of the *environment's* token, which nobody samples.

    As in Tinker, the loss of `strict` is summed over all tokens: only zero advantages protect the masked ones.
    """
    world = make_world(3, 3, seed=0, tool=1)
    logits_SV = world.student_SV
    advantages_NT = reverse_kl_advantage(*logprob_pair(world, logits_SV), discount=1.0, discount_mode=discount_mode)
    everywhere_NT = torch.ones_like(world.mask_NT)
    rows_NP = policy_gradient_rows(world, logits_SV, advantages_NT, mask_NT=everywhere_NT)
    mean_SV = rows_of(world, logits_SV, rows_NP).mean().reshape_as(logits_SV)
    return float(mean_SV[world.states_NT[:, 1]].abs().max())


def older_sampler(logits_SV: torch.Tensor) -> torch.Tensor:
    """A sampler whose logits are N(0, 1) away, (S, V)."""
    generator = torch.Generator().manual_seed(7)
    return logits_SV + torch.randn(logits_SV.shape, generator=generator, dtype=logits_SV.dtype)


def replayed(
    world: World,
    logits_SV: torch.Tensor,
    *,
    current: bool,
    exponent: float = 0.0,
    weighted: bool = True,
    loss: Callable[..., torch.Tensor] = importance_sampling_loss,
) -> tuple[Draws, torch.Tensor]:
    """Rows of an older sampler, drawn from a large buffer by priority^exponent, and the gradient that is wanted of
    them: that of the reverse KL in the sampler's states.

    current: the reverse KL is taken under the student, as `verl_ext.trainer.replaying` does; else under the sampler.
    weighted: each row weighs 1 / (N P), beta = 1. The priority is the sampler's own, as of a row that nobody has
        looked at since.
    """
    rollout_SV = older_sampler(logits_SV)
    mask_NT, stale = world.mask_NT, logprob_pair(world, rollout_SV)
    advantages_NT = reverse_kl_advantage(*(logprob_pair(world, logits_SV) if current else stale))
    rows_NP = policy_gradient_rows(world, logits_SV, advantages_NT, rollout_SV=rollout_SV, loss=loss)
    charge_N = torch.where(mask_NT, (stale[0] - stale[1]).abs(), 0.0).sum(-1) / mask_NT.sum(-1)
    values_N, sampled_N = (charge_N + PRIORITY_FLOOR) ** exponent, sequence_probs(world, rollout_SV)
    drawn_N = sampled_N * values_N / (sampled_N @ values_N)
    weights_N = sampled_N / drawn_N if weighted else torch.ones_like(drawn_N)
    aim_P = gradient(lambda x: visits(world, rollout_SV) @ state_kl(world, x), logits_SV)
    return Draws(drawn_N, weights_N[:, None] * rows_NP), aim_P


def off_policy(world: World, logits_SV: torch.Tensor, loss: Callable[..., torch.Tensor]) -> tuple[Draws, torch.Tensor]:
    """A policy loss on rows of an older sampler, and what it estimates: the policy's step in the sampler's states."""
    rollout_SV = older_sampler(logits_SV)
    advantages_NT = reverse_kl_advantage(*logprob_pair(world, rollout_SV))
    rows_NP = policy_gradient_rows(world, logits_SV, advantages_NT, rollout_SV=rollout_SV, loss=loss)
    charge_SV = rollout_SV.log_softmax(-1) - world.teacher_SV
    aim_P = gradient(lambda x: visits(world, rollout_SV) @ (x.softmax(-1) * charge_SV).sum(-1), logits_SV)
    return rows_of(world, rollout_SV, rows_NP), aim_P


@dataclass(frozen=True)
class Entry:
    """An estimator and what its expected gradient is, exactly.

    gradient_of: `states` for the sum of the states' reverse KL with the states held fixed, `sequence` for the reverse
        KL of sequences, `nothing` for zero, empty for none of these.
    """

    name: str
    gradient_of: str
    estimator: Estimator


ESTIMATORS = (
    Entry("sampled, discount 0 (Tinker)", "states", sampled),
    Entry("+ expected reverse KL baseline", "states", partial(sampled, baseline=full_baseline)),
    Entry("+ the same from top-k and tail", "states", partial(sampled, baseline=topk_baseline)),
    Entry("+ the same, support holds the token", "", partial(sampled, baseline=sampled_token_baseline)),
    Entry("+ group baseline, leave one out", "states", partial(grouped, leave_one_out=True, tokens=True)),
    Entry("+ group baseline with itself", "", partial(grouped, leave_one_out=False, tokens=True)),
    Entry("+ clip 1 nat", "", partial(sampled, clip=1.0)),
    Entry("+ normalization sequence", "", partial(sampled, normalization="sequence")),
    Entry("sampled, discount 0.5", "", partial(sampled, discount=0.5)),
    Entry("sampled, discount 1", "sequence", partial(sampled, discount=1.0)),
    Entry(
        "+ expected reverse KL baseline, discounted", "sequence", partial(sampled, discount=1.0, baseline=full_baseline)
    ),
    Entry("+ the same, before the sum", "states", baseline_before_sum),
    Entry("+ group baseline, leave one out, rows", "sequence", partial(grouped, leave_one_out=True, tokens=False)),
    Entry("+ group baseline with itself, rows", "", partial(grouped, leave_one_out=False, tokens=False)),
    Entry("direct reverse KL", "states", partial(direct, kind="reverse_kl", tail=True, over="vocabulary")),
    Entry("direct reverse KL, top-k and tail", "", partial(direct, kind="reverse_kl", tail=True)),
    Entry("+ samples in the tail", "states", partial(direct_and_sampled_tail, over="teacher")),
    Entry(
        "direct reverse KL, student's top-k and tail", "", partial(direct, kind="reverse_kl", tail=True, over="student")
    ),
    Entry("+ samples in the tail, student's", "states", partial(direct_and_sampled_tail, over="student")),
    Entry("direct reverse KL, top-k, no tail", "", partial(direct, kind="reverse_kl", tail=False)),
    Entry("direct forward KL", "", partial(direct, kind="forward_kl", tail=True, over="vocabulary")),
    Entry("direct forward KL, top-k and tail", "", partial(direct, kind="forward_kl", tail=True)),
    Entry("direct forward KL, top-k, no tail", "", partial(direct, kind="forward_kl", tail=False)),
    Entry("k1 as a loss", "nothing", partial(estimate_as_loss, kind="k1")),
    Entry("k2 as a loss", "states", partial(estimate_as_loss, kind="k2")),
    Entry("k3 as a loss", "", partial(estimate_as_loss, kind="k3")),
    Entry("top-k KL as an advantage", "nothing", topk_kl_as_advantage),
    Entry("constant negative advantage", "nothing", constant),
    Entry("flipped sign", "", flipped),
    Entry("teacher = student", "nothing", own_teacher),
)
OFF_POLICY: dict[str, Callable[..., torch.Tensor]] = {
    "importance sampling": importance_sampling_loss,
    "PPO clip 0.2, 0.2": partial(ppo_clip_loss, low=0.8, high=1.2),
    "truncated to [0.5, 2], clamp": partial(truncated_importance_sampling_loss, low=0.5, high=2.0, outside="clamp"),
    "truncated to [0.5, 2], mask": partial(truncated_importance_sampling_loss, low=0.5, high=2.0, outside="mask"),
}
REPLAY: dict[str, tuple[bool, Callable[..., tuple[Draws, torch.Tensor]]]] = {
    "uniform, the sampler's reverse KL": (False, partial(replayed, current=False)),
    "uniform, the student's reverse KL": (True, partial(replayed, current=True)),
    "priority, weighted, the sampler's reverse KL": (False, partial(replayed, current=False, exponent=0.6)),
    "priority, weighted, the student's reverse KL": (True, partial(replayed, current=True, exponent=0.6)),
    "+ exponent 1": (True, partial(replayed, current=True, exponent=1.0)),
    "priority, not weighted, the sampler's reverse KL": (
        False,
        partial(replayed, current=False, exponent=0.6, weighted=False),
    ),
    "priority, not weighted, the student's reverse KL": (
        False,
        partial(replayed, current=True, exponent=0.6, weighted=False),
    ),
    "priority, weighted, the student's, truncated to [0.8, 1.2]": (
        False,
        partial(
            replayed,
            current=True,
            exponent=0.6,
            loss=partial(truncated_importance_sampling_loss, low=0.8, high=1.2, outside="clamp"),
        ),
    ),
    "priority, weighted, the student's, truncated to [0.5, 2]": (
        False,
        partial(replayed, current=True, exponent=0.6, loss=OFF_POLICY["truncated to [0.5, 2], clamp"]),
    ),
}
"""Whether the expected gradient is exactly the wanted one, and the draws."""
