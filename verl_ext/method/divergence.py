"""Direct losses: per-token divergences between the student and the teacher, over a support and one tail bucket.

Shapes: `N` tokens (flattened), `V` vocabulary, `S` support entries, `K` top-k entries. Log-probs are in nats. In the
formulas `p` is the teacher, `q` the student, `m` a mixture of both; every divergence is >= 0 and 0 only at p = q.

A support of top-k entries does not sum to one. `tail=True` adds the rest of the vocabulary as one more entry, so that
the loss stays a divergence, is at most the full one (data-processing inequality) and equals it at K = V.
`tail=False` sums over the support alone, as verl's `forward_kl_topk` does: no longer a divergence (it may be negative),
and it cannot see where the student puts the remaining mass.

An id below 0 is no entry: a row's support is smaller by it, and what the token would have had is in the tail.
"""

import math
from typing import NamedTuple

import torch

KINDS = ("forward_kl", "reverse_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl")
"""- `forward_kl`: KL(p||q), range [0, inf). Mass-covering. Gradient in a logit: q - p, within [-1, 1].
- `reverse_kl`: KL(q||p), [0, inf). Mode-seeking. Gradient in a logit: q (log q/p - KL); it vanishes where q does, and
  grows with log 1/p where the teacher excludes what the student says.
- `jensen_shannon`: b KL(p||m) + (1-b) KL(q||m), m = b p + (1-b) q, b = `mix` in (0, 1), the teacher's weight. Range
  [0, H(b)], H the binary entropy, at most log 2. Over b it tends to KL(p||q) as b -> 0, over 1-b to KL(q||p) as b -> 1,
  so its gradient shrinks with b or 1-b. Gradient bounded. Source: GKD, arXiv 2306.13649.
- `skewed_forward_kl`: KL(p||m), m = a p + (1-a) q, a = `mix` in [0, 1). Range [0, log 1/a]; a = 0 is `forward_kl`.
  Gradient in a logit: q sum(r) - r, r = p (1-a) q / m, within [-1, 1]. Source: DistiLLM, arXiv 2402.03898.
- `skewed_reverse_kl`: KL(q||m), m = a q + (1-a) p, a = `mix` in [0, 1). Range [0, log 1/a]; a = 0 is `reverse_kl`.
  log q/m is at most log 1/a: where the teacher excludes a token the gradient stays bounded. Same source.
"""

LOGPROB_FLOOR = -1e4
"""A log-prob below this, -inf too, is read as this (nats): 0 * log 0 stays 0, and no gradient flows below."""

EXCLUDED_LOGIT = -1e30
"""Stands for the logit of nothing; finite, so that a row with no tail gives no NaN."""


class TokenDivergence(NamedTuple):
    """What a direct loss returns for every token, all (N,), at least fp32."""

    divergence_N: torch.Tensor
    """The divergence, nats, with gradient."""
    expected_reverse_kl_N: torch.Tensor
    """E_q[log q - log p] over support and tail, nats, detached, whatever `kind` and `tail`. Exact for the
    buckets; a baseline for the sampled reverse KL of this position, unbiased since it does not depend on the sample."""
    student_mass_N: torch.Tensor
    """The student's probability of the support, [0, 1], detached."""
    teacher_mass_N: torch.Tensor
    """The teacher's probability of the support, [0, 1], detached."""
    tail_reverse_kl_N: torch.Tensor
    """log q - log p of the tail as one entry, nats, detached; 0 where the support is the vocabulary."""


def wide(x: torch.Tensor) -> torch.Tensor:
    """`x` in fp32, or unchanged in fp64."""
    return x if x.dtype == torch.float64 else x.float()


def with_tail(logprobs_NK: torch.Tensor) -> torch.Tensor:
    """Append the log of the remaining mass, log(1 - sum exp), as one bucket: (N, K+1), at least fp32.

    The remaining mass is at least `eps` of the dtype (1.2e-7 in fp32: -15.9 nats; 2.2e-16 in fp64: -36.0), below which
    it is rounding: a sum of 1 or slightly above gives that floor, with no gradient.
    """
    logprobs_NK = wide(logprobs_NK)
    mass_N1 = logprobs_NK.exp().sum(-1, keepdim=True)
    tail_N1 = torch.log1p(-mass_N1.clamp_max(1 - torch.finfo(mass_N1.dtype).eps))
    return torch.cat((logprobs_NK, tail_N1), dim=-1)


def check_kind(kind: str, mix: float) -> None:
    """Refuse an unknown kind or a weight out of its range.

    Raises:
        ValueError: naming the value and the fix.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "jensen_shannon" and not 0.0 < mix < 1.0:
        raise ValueError(
            f"mix must be in (0, 1) for jensen_shannon, got {mix}; its limits are forward_kl and reverse_kl"
        )
    if kind.startswith("skewed") and not 0.0 <= mix < 1.0:
        raise ValueError(f"mix must be in [0, 1) for {kind}, got {mix}")


def _kl(a_NS: torch.Tensor, b_NS: torch.Tensor) -> torch.Tensor:
    """sum_s exp(a) (a - b), (N,)."""
    return (a_NS.exp() * (a_NS - b_NS)).sum(-1)


def _mixture(a_NS: torch.Tensor, b_NS: torch.Tensor, weight: float) -> torch.Tensor:
    """log(weight exp(a) + (1 - weight) exp(b)), (N, S); weight in (0, 1)."""
    return torch.logaddexp(a_NS + math.log(weight), b_NS + math.log1p(-weight))


def divergence(
    student_logprobs_NS: torch.Tensor, teacher_logprobs_NS: torch.Tensor, *, kind: str, mix: float
) -> torch.Tensor:
    """The divergence of every token, nats, (N,), over a support whose entries sum to one.

    Args:
        student_logprobs_NS: log q, nats, (N, S).
        teacher_logprobs_NS: log p of the same entries, nats, (N, S).
        kind: one of `KINDS`, where the formulas and their sources are.
        mix: b or a of the mixture; `forward_kl` and `reverse_kl` do not read it.

    Raises:
        ValueError: on an unknown kind, a weight out of range or shapes that differ.
    """
    check_kind(kind, mix)
    if student_logprobs_NS.shape != teacher_logprobs_NS.shape:
        shapes = f"{tuple(student_logprobs_NS.shape)} and {tuple(teacher_logprobs_NS.shape)}"
        raise ValueError(f"student_logprobs and teacher_logprobs must share one (N, S), got {shapes}")
    q_NS = wide(student_logprobs_NS).clamp_min(LOGPROB_FLOOR)
    p_NS = wide(teacher_logprobs_NS).clamp_min(LOGPROB_FLOOR)
    if kind == "jensen_shannon":
        m_NS = _mixture(p_NS, q_NS, mix)
        return mix * _kl(p_NS, m_NS) + (1 - mix) * _kl(q_NS, m_NS)
    own_NS, other_NS = (q_NS, p_NS) if kind.endswith("reverse_kl") else (p_NS, q_NS)
    if kind.startswith("skewed") and mix > 0:
        other_NS = _mixture(own_NS, other_NS, mix)
    return _kl(own_NS, other_NS)


def bucket_logits(student_logits_NV: torch.Tensor, support_ids_NK: torch.Tensor) -> torch.Tensor:
    """The logits of the support and, where K < V, the logsumexp of all others: (N, K+1), or (N, V) at K = V.

    Their log-softmax is the student's exact distribution over support and tail. Taken from the logits and not as
    1 - sum, the tail keeps its value and gradient where the support holds all but 1e-7 of the mass.
    """
    logits_NV = wide(student_logits_NV)
    at_NK, absent_NK = support_ids_NK.clamp_min(0), support_ids_NK < 0
    support_NK = logits_NV.gather(1, at_NK).masked_fill(absent_NK, EXCLUDED_LOGIT)
    if support_ids_NK.shape[1] == logits_NV.shape[1]:
        return support_NK
    # A minimum: what stands for no entry is clamped onto a token that it must leave alone.
    bound_NK = torch.where(absent_NK, torch.inf, EXCLUDED_LOGIT).to(logits_NV.dtype)
    tail_N1 = logits_NV.scatter_reduce(1, at_NK, bound_NK, "amin").logsumexp(1, keepdim=True)
    return torch.cat((support_NK, tail_N1), dim=1)


def present(teacher_logprobs_NK: torch.Tensor, support_ids_NK: torch.Tensor) -> torch.Tensor:
    """The teacher's log-probs, at least fp32, detached; -inf where an id stands for no entry, whatever is there."""
    return wide(teacher_logprobs_NK).detach().masked_fill(support_ids_NK < 0, -torch.inf)


def bucket_divergence(
    bucket_logits_NS: torch.Tensor, teacher_logprobs_NK: torch.Tensor, *, kind: str, mix: float, tail: bool
) -> TokenDivergence:
    """`topk_divergence` from the student's `bucket_logits`; S = K + 1, or K where the support is the vocabulary."""
    k = teacher_logprobs_NK.shape[1]
    if bucket_logits_NS.shape[0] != teacher_logprobs_NK.shape[0] or bucket_logits_NS.shape[1] - k not in (0, 1):
        shapes = f"{tuple(bucket_logits_NS.shape)} buckets, {tuple(teacher_logprobs_NK.shape)}"
        raise ValueError(f"support_ids and teacher_logprobs must share one (N, K), got {shapes}")
    teacher_NK = wide(teacher_logprobs_NK).detach()
    teacher_NS = teacher_NK if bucket_logits_NS.shape[1] == k else with_tail(teacher_NK)
    student_NS = bucket_logits_NS.log_softmax(-1)
    tail_N = student_NS.detach()[:, k:].sum(-1) - teacher_NS[:, k:].sum(-1)  # of one entry or of none
    pair = (student_NS, teacher_NS) if tail else (student_NS[:, :k], teacher_NK)
    return TokenDivergence(
        divergence_N=divergence(*pair, kind=kind, mix=mix),
        expected_reverse_kl_N=divergence(student_NS.detach(), teacher_NS, kind="reverse_kl", mix=0.0),
        student_mass_N=student_NS.detach()[:, :k].exp().sum(-1),
        teacher_mass_N=teacher_NK.exp().sum(-1),
        tail_reverse_kl_N=tail_N,
    )


def topk_divergence(
    student_logits_NV: torch.Tensor,
    support_ids_NK: torch.Tensor,
    teacher_logprobs_NK: torch.Tensor,
    *,
    kind: str,
    mix: float,
    tail: bool,
) -> TokenDivergence:
    """The divergence of every token over a support: the teacher's top-k, the student's, or the whole vocabulary.

    Holds several (N, V) tensors; `verl_ext.method.chunked` computes the same in chunks.

    Args:
        student_logits_NV: with gradient, (N, V).
        support_ids_NK: distinct token ids in every row, (N, K); below 0: no entry, with K < V.
        teacher_logprobs_NK: the teacher's log-probs of these ids, normalised over V, nats, (N, K); constants.
        kind: one of `KINDS`.
        mix: weight of the mixture, see `KINDS`.
        tail: count the remaining mass as one more entry; nothing remains at K = V.

    Raises:
        ValueError: on an unknown kind, a weight out of range or shapes that differ.
    """
    buckets = bucket_logits(student_logits_NV, support_ids_NK)
    return bucket_divergence(buckets, present(teacher_logprobs_NK, support_ids_NK), kind=kind, mix=mix, tail=tail)
