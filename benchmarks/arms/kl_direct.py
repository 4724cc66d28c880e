"""The direct losses of `verl_ext.method` as draws in the laboratory: over which support, and its tail."""

import torch

from benchmarks.arms.kl_laboratory import (
    Draws,
    World,
    direct_rows,
    policy_gradient_rows,
    sequence_probs,
    token_logprobs,
)
from verl_ext.method.divergence import topk_divergence
from verl_ext.method.policy_loss import tail_sample_loss

K = 3
"""Entries of the top-k supports."""


def rows_of(world: World, logits_SV: torch.Tensor, rows_NP: torch.Tensor) -> Draws:
    """One draw is one sequence."""
    return Draws(sequence_probs(world, logits_SV), rows_NP)


def support(world: World, logits_SV: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of the teacher's top-k, or of the student's where it is given, in every state, and the teacher's
    log-probs of them, both (S, K)."""
    ids_SK = (world.teacher_SV if logits_SV is None else logits_SV).topk(K, dim=-1).indices
    return ids_SK, world.teacher_SV.gather(1, ids_SK)


def direct(world: World, logits_SV: torch.Tensor, *, kind: str, tail: bool, over: str = "teacher") -> Draws:
    """A divergence descended directly, over the top-k of the teacher or the student or over the vocabulary."""

    def loss_S(leaf_SV: torch.Tensor) -> torch.Tensor:
        ids_SK, teacher_SK = support(world, leaf_SV.detach() if over == "student" else None)
        if over == "vocabulary":
            ids_SK, teacher_SK = torch.arange(leaf_SV.shape[1]).expand_as(leaf_SV), world.teacher_SV
        return topk_divergence(leaf_SV, ids_SK, teacher_SK, kind=kind, mix=0.5, tail=tail).divergence_N

    return rows_of(world, logits_SV, direct_rows(world, logits_SV, loss_S))


def direct_and_sampled_tail(world: World, logits_SV: torch.Tensor, *, over: str) -> Draws:
    """The direct reverse KL over a top-k and its tail, and the sampled tokens that fell into the tail."""
    direct_draws = direct(world, logits_SV, kind="reverse_kl", tail=True, over=over)
    ids_SK, teacher_SK = support(world, logits_SV if over == "student" else None)
    found = topk_divergence(logits_SV, ids_SK, teacher_SK, kind="reverse_kl", mix=0.0, tail=True)
    in_tail_NT = world.mask_NT & (ids_SK[world.states_NT] != world.tokens_NT[..., None]).all(-1)

    def loss(logprobs_NT: torch.Tensor, rollout_NT: torch.Tensor, teacher_NT: torch.Tensor) -> torch.Tensor:
        tail_NT = found.tail_reverse_kl_N[world.states_NT]
        return tail_sample_loss(logprobs_NT, rollout_NT, teacher_NT, tail_NT, in_tail_NT)

    teacher_NT = token_logprobs(world, world.teacher_SV)
    rows_NP = direct_draws.gradients_MP + policy_gradient_rows(world, logits_SV, teacher_NT, loss=loss)
    return rows_of(world, logits_SV, rows_NP)
