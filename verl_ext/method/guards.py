"""What keeps training away from tokens and samples that teach the wrong thing.

Each guard is a pure function; those that act return `(new mask or flags, metrics)`, with shares in [0, 1].
A share of tokens has the response tokens of the batch as its denominator, a share of samples its rows.
"""

import torch

REFERENCE_KINDS = ("k1", "k2", "k3")
Guarded = tuple[torch.Tensor, dict[str, float]]


def _share(part: torch.Tensor, whole: torch.Tensor | int) -> float:
    return float(part.sum() / max(int(whole), 1))


def truncation_mask(mask_BT: torch.Tensor, truncated_B: torch.Tensor) -> Guarded:
    """The mask with every row that was cut off at the length limit emptied: its end is not the student's choice.

    Source: overlong filtering, DAPO, arXiv 2503.14476, section 3.4.

    Args:
        mask_BT: 1 on response tokens, (B, T).
        truncated_B: True where sampling stopped at the limit, (B,).
    """
    truncated_B = truncated_B.bool()
    return mask_BT * ~truncated_B[:, None], {"guards/truncated_share": _share(truncated_B, len(truncated_B))}


def repetition_share(token_ids_BT: torch.Tensor, mask_BT: torch.Tensor, *, ngram: int) -> torch.Tensor:
    """Share of a row's n-grams that occurred before in it, (B,): `1 - distinct / all`; 0 for rows shorter than n.

    Masked tokens are left out first, so n-grams run on over a tool's output. Source: 1 - distinct-n, arXiv 1510.03055.

    Args:
        token_ids_BT: token ids, (B, T).
        mask_BT: 1 on response tokens, (B, T).
        ngram: tokens in an n-gram, >= 1.
    """
    if ngram < 1:
        raise ValueError(f"ngram must be >= 1, got {ngram}")
    share_B = torch.zeros(len(token_ids_BT), device=token_ids_BT.device)
    for row, (ids_T, keep_T) in enumerate(zip(token_ids_BT, mask_BT.bool(), strict=True)):
        ids = ids_T[keep_T]
        if len(ids) >= ngram:
            grams = ids.unfold(0, ngram, 1)
            share_B[row] = 1.0 - len(torch.unique(grams, dim=0)) / len(grams)
    return share_B


def repetition_alarm(token_ids_BT: torch.Tensor, mask_BT: torch.Tensor, *, ngram: int, limit: float) -> Guarded:
    """True where `repetition_share` exceeds `limit` (in [0, 1]), (B,)."""
    share_B = repetition_share(token_ids_BT, mask_BT, ngram=ngram)
    flags_B = share_B > limit
    rows = len(share_B)
    return flags_B, {"guards/repetition": _share(share_B, rows), "guards/repetition_flagged": _share(flags_B, rows)}


def special_token_mask(mask_BT: torch.Tensor, token_ids_BT: torch.Tensor, special_ids: list[int]) -> Guarded:
    """The mask without the tokens in `special_ids`: template tokens, on which two models differ for no good reason.

    Args:
        mask_BT: 1 on response tokens, (B, T).
        token_ids_BT: token ids, (B, T).
        special_ids: ids to leave out.
    """
    special = torch.tensor(special_ids, dtype=token_ids_BT.dtype, device=token_ids_BT.device)
    special_BT = torch.isin(token_ids_BT, special) & mask_BT.bool()
    return mask_BT * ~special_BT, {"guards/special_token_share": _share(special_BT, int(mask_BT.bool().sum()))}


def reference_kl(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, *, kind: str) -> torch.Tensor:
    """Per-token estimate of KL(policy || reference) from the sampled token, nats, (B, T).

    With `d = logprobs - reference_logprobs`: k1 = d, unbiased; k2 = d**2 / 2, biased, low variance;
    k3 = exp(-d) - 1 + d, unbiased, never negative. d is bounded to +-20 in k3.

    As an *advantage* (no gradient) k1 gives the gradient of the KL. As a *loss* the expected gradient is that of the
    KL for k2 only: k1's is 0 and k3's is that of KL(reference || policy).

    Source: Schulman, joschu.net/blog/kl-approx.html; gradients: `tests/unit/benchmarks/test_kl_laboratory.py`.

    Args:
        logprobs: log-probs of the sampled tokens under the policy, nats, (B, T).
        reference_logprobs: the same under the frozen reference, nats, (B, T).

    Raises:
        ValueError: on an unknown kind.
    """
    gap_BT = logprobs - reference_logprobs
    if kind == "k1":
        return gap_BT
    if kind == "k2":
        return 0.5 * gap_BT.square()
    if kind == "k3":
        bounded_BT = gap_BT.clamp(-20.0, 20.0)
        return torch.exp(-bounded_BT) - 1.0 + bounded_BT
    raise ValueError(f"kind={kind!r} must be one of {', '.join(REFERENCE_KINDS)}")


def prefix_fraction(step: int, start: float, steps: int) -> float:
    """Share of each response that is trained on at `step` (from 0): linear from `start` to 1 in `steps` steps.

    Raises:
        ValueError: if `start` is not in (0, 1] or `steps` is negative.
    """
    if not 0.0 < start <= 1.0:
        raise ValueError(f"start must be in (0, 1], got {start}")
    if steps < 0:
        raise ValueError(f"steps must be >= 0, got {steps}")
    return 1.0 if step >= steps else start + (1.0 - start) * step / steps


def prefix_mask(mask_BT: torch.Tensor, fraction: float) -> Guarded:
    """The mask with the first `ceil(fraction * n)` of a row's n response tokens: early tokens first.

    Late tokens of an untrained student continue its own mistakes, where the teacher's signal is noise.

    Args:
        mask_BT: 1 on response tokens, (B, T).
        fraction: in [0, 1].

    Raises:
        ValueError: if `fraction` is out of range.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    response_BT = mask_BT.bool()
    kept_B = torch.ceil(fraction * response_BT.sum(-1, keepdim=True))
    kept_BT = response_BT & (response_BT.cumsum(-1) <= kept_B)
    return mask_BT * kept_BT, {"guards/prefix_share": _share(kept_BT, int(response_BT.sum()))}
