"""The direct losses from hidden states or logits, never holding more than a chunk of fp32 logits.

Shapes: `N` tokens (flattened), `V` vocabulary, `b` a block of it, `K` top-k, `S` = K + 1 buckets, `D` hidden.

A loss over a support sees a row of V logits only through `divergence.bucket_logits`: the K logits of the support and
the logsumexp of the others. Two autograd functions compute those chunk by chunk, keep nothing of size (N, V), and in
backward recompute each chunk and write its gradient over it. What follows them is plain autograd on (N, S).

- From hidden states (`chunked_topk_divergence`) a chunk is a block of the vocabulary for all
  tokens, as in cut cross-entropy (arXiv 2411.09009), of at most `chunk_tokens` x V elements. A block of the weight
  gradient is then one product over all tokens, written once in the weight's dtype: nothing is summed over chunks.
- From logits that exist (`chunked_from_logits`) a chunk is `chunk_tokens` rows.

Memory beside inputs and gradients: one chunk in fp32, in half precision on CUDA half a chunk more (its copy for the
tensor cores), the gradient of the hidden states in fp32, and O(N K). Products accumulate in fp32: half inputs on CUDA
through `out_dtype`, elsewhere widened block by block. Autocast is off inside, so that it cannot round the logits.

An id of V or more makes its token NaN; to raise, the device would have to be waited for. One below 0 is no entry.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from verl_ext.method.divergence import EXCLUDED_LOGIT, TokenDivergence, bucket_divergence, present, wide


def _exclude_(logits_Nb: torch.Tensor, ids_NK: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overwrite the support's logits; return every id's column, clamped, and whether it is in the block."""
    width = logits_Nb.shape[1]
    inside_NK = (ids_NK >= first) & (ids_NK < first + width)
    at_NK = (ids_NK - first).clamp_(0, width - 1)
    # A minimum: an id from outside is clamped onto a column that it must leave alone.
    value_NK = torch.where(inside_NK, EXCLUDED_LOGIT, torch.inf).to(logits_Nb.dtype)
    logits_Nb.scatter_reduce_(1, at_NK, value_NK, "amin")
    return at_NK, inside_NK


def _buckets_(logits_Nb: torch.Tensor, ids_NK: torch.Tensor, first: int) -> torch.Tensor:
    """A block's share of the buckets, (N, S): NaN for ids outside it. Destroys the logits."""
    at_NK = (ids_NK - first).clamp_(0, logits_Nb.shape[1] - 1)
    support_NK = logits_Nb.gather(1, at_NK)
    _, inside_NK = _exclude_(logits_Nb, ids_NK, first)
    peak_N1 = logits_Nb.amax(1, keepdim=True).clamp_min_(EXCLUDED_LOGIT)
    tail_N1 = logits_Nb.sub_(peak_N1).exp_().sum(1, keepdim=True).log_().add_(peak_N1)
    return torch.cat((support_NK.masked_fill_(~inside_NK, torch.nan), tail_N1.clamp_min_(EXCLUDED_LOGIT)), dim=1)


def _merge(one_NS: torch.Tensor, other_NS: torch.Tensor) -> torch.Tensor:
    """The buckets of two blocks together, (N, S)."""
    support_NK = torch.where(other_NS.isnan(), one_NS, other_NS)[:, :-1]
    return torch.cat((support_NK, torch.logaddexp(one_NS[:, -1:], other_NS[:, -1:])), dim=1)


def _logits_gradient_(
    logits_Nb: torch.Tensor, ids_NK: torch.Tensor, first: int, tail_N1: torch.Tensor, grad_NS: torch.Tensor
) -> torch.Tensor:
    """The gradient of a block's logits from that of the buckets, written over the logits, (N, b)."""
    at_NK, inside_NK = _exclude_(logits_Nb, ids_NK, first)
    logits_Nb.sub_(tail_N1).exp_().mul_(grad_NS[:, -1:])
    return logits_Nb.scatter_add_(1, at_NK, grad_NS[:, :-1].masked_fill(~inside_NK, 0.0))


def _native_half(hidden_ND: torch.Tensor, weight_bD: torch.Tensor) -> bool:
    """Whether a product of these half-precision tensors can return its fp32 accumulator (meta: counted as CUDA)."""
    halves = (torch.bfloat16, torch.float16)
    capable = hidden_ND.device.type in ("cuda", "meta")
    return capable and hidden_ND.dtype == weight_bD.dtype and hidden_ND.dtype in halves


def _no_autocast(device: torch.device) -> AbstractContextManager:
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def _block_logits(
    hidden_ND: torch.Tensor, weight_bD: torch.Tensor, bias_b: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """(hidden @ weight.T + bias) / temperature, at least fp32, (N, b)."""
    if _native_half(hidden_ND, weight_bD):
        logits_Nb = torch.mm(hidden_ND, weight_bD.t(), out_dtype=torch.float32)
    else:
        logits_Nb = wide(hidden_ND) @ wide(weight_bD).t()
    if bias_b is not None:
        logits_Nb += bias_b
    return logits_Nb.div_(temperature)


def _add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right, at least fp32 throughout."""
    if _native_half(left, right):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left, wide(right))


def _write_product_(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """out = left @ right, rounded once to the dtype of `out`."""
    right = right if _native_half(left, right) else wide(right)
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _blocks(tokens: int, vocabulary: int, chunk_tokens: int) -> list[slice]:
    """Slices of the vocabulary whose logits for all tokens are at most `chunk_tokens` x V elements."""
    width = min(vocabulary, max(1, chunk_tokens * vocabulary // max(1, tokens)))
    width -= width % 8 if 8 < width < vocabulary else 0  # tensor cores want aligned rows
    return [slice(first, min(first + width, vocabulary)) for first in range(0, vocabulary, width)]


class _BucketsOfHidden(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        ids_NK: torch.Tensor,
        chunk_tokens: int,
        temperature: float,
    ) -> torch.Tensor:
        ctx.blocks = _blocks(hidden_ND.shape[0], weight_VD.shape[0], chunk_tokens)
        ctx.temperature = temperature
        buckets_NS: torch.Tensor | None = None
        with _no_autocast(hidden_ND.device):
            for block in ctx.blocks:
                bias_b = None if bias_V is None else bias_V[block]
                # Nested, so that the block is free before the next is made.
                share_NS = _buckets_(
                    _block_logits(hidden_ND, weight_VD[block], bias_b, temperature), ids_NK, block.start
                )
                buckets_NS = share_NS if buckets_NS is None else _merge(buckets_NS, share_NS)
        assert buckets_NS is not None
        buckets_NS[:, :-1].masked_fill_(ids_NK < 0, EXCLUDED_LOGIT)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, ids_NK, buckets_NS[:, -1:].clone())
        return buckets_NS

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_NS: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, ids_NK, tail_N1 = ctx.saved_tensors
        hidden_wanted, weight_wanted, bias_wanted = ctx.needs_input_grad[:3]
        grad_NS = grad_NS / ctx.temperature
        grad_hidden_ND = torch.zeros_like(wide(hidden_ND)) if hidden_wanted else None
        grad_weight_VD = torch.empty_like(weight_VD) if weight_wanted else None
        grad_bias_V = torch.empty_like(bias_V) if bias_wanted else None
        with _no_autocast(hidden_ND.device):
            for block in ctx.blocks:
                weight_bD = weight_VD[block]
                bias_b = None if bias_V is None else bias_V[block]
                grad_Nb = _logits_gradient_(
                    _block_logits(hidden_ND, weight_bD, bias_b, ctx.temperature), ids_NK, block.start, tail_N1, grad_NS
                )
                if grad_bias_V is not None:
                    grad_bias_V[block] = grad_Nb.sum(0)
                if _native_half(hidden_ND, weight_bD):
                    grad_Nb = grad_Nb.to(weight_bD.dtype)
                if grad_hidden_ND is not None:
                    _add_product_(grad_hidden_ND, grad_Nb, weight_bD)
                if grad_weight_VD is not None:
                    _write_product_(grad_weight_VD[block], grad_Nb.t(), hidden_ND)
                del grad_Nb
        grad_hidden_ND = None if grad_hidden_ND is None else grad_hidden_ND.to(hidden_ND.dtype)
        return grad_hidden_ND, grad_weight_VD, grad_bias_V, None, None, None


class _BucketsOfLogits(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, logits_NV: torch.Tensor, ids_NK: torch.Tensor, chunk_tokens: int, temperature: float
    ) -> torch.Tensor:
        shares = [
            _buckets_(_rows(logits_NV, rows, temperature), ids_NK[rows], 0)
            for rows in _row_chunks(logits_NV.shape[0], chunk_tokens)
        ]
        buckets_NS = torch.cat(shares)
        buckets_NS[:, :-1].masked_fill_(ids_NK < 0, EXCLUDED_LOGIT)
        ctx.save_for_backward(logits_NV, ids_NK, buckets_NS[:, -1:].clone())
        ctx.chunk_tokens, ctx.temperature = chunk_tokens, temperature
        return buckets_NS

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_NS: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        logits_NV, ids_NK, tail_N1 = ctx.saved_tensors
        grad_NS = grad_NS / ctx.temperature
        grad_NV = torch.empty_like(logits_NV)
        for rows in _row_chunks(logits_NV.shape[0], ctx.chunk_tokens):
            grad_NV[rows] = _logits_gradient_(
                _rows(logits_NV, rows, ctx.temperature), ids_NK[rows], 0, tail_N1[rows], grad_NS[rows]
            )
        return grad_NV, None, None, None


def _row_chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(first, min(first + chunk_tokens, tokens)) for first in range(0, max(tokens, 1), chunk_tokens)]


def _rows(logits_NV: torch.Tensor, rows: slice, temperature: float) -> torch.Tensor:
    """A chunk of rows over the temperature, at least fp32, in memory of its own."""
    chunk_cV = logits_NV[rows]
    return chunk_cV.to(wide(chunk_cV[:0]).dtype, copy=True).div_(temperature)


def _check(chunk_tokens: int, temperature: float) -> None:
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be >= 1, got {chunk_tokens}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def chunked_topk_divergence(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    support_ids_NK: torch.Tensor,
    teacher_logprobs_NK: torch.Tensor,
    *,
    kind: str,
    mix: float,
    tail: bool,
    chunk_tokens: int,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> TokenDivergence:
    """`divergence.topk_divergence` of the logits (hidden @ weight.T + bias) / temperature, in chunks.

    Args:
        hidden_ND: the student's last hidden states, (N, D); fp64, fp32 or half.
        weight_VD: of the language-model head, whole on this rank, (V, D); its gradient has its dtype.
        support_ids_NK: distinct token ids in every row, (N, K); below 0: no entry, with K < V.
        teacher_logprobs_NK: the teacher's log-probs of these ids at the same temperature, nats, (N, K); constants.
        kind: one of `divergence.KINDS`.
        mix: weight of the mixture, see `divergence.KINDS`.
        tail: count the remaining mass as one more entry; nothing remains at K = V.
        chunk_tokens: fp32 logits held at once, in rows of V, >= 1.
        bias: of the head, (V,).
        temperature: of the student's distribution, > 0.

    Raises:
        ValueError: on an unknown kind, a number out of range or shapes that differ.
    """
    _check(chunk_tokens, temperature)
    buckets_NS = _BucketsOfHidden.apply(hidden_ND, weight_VD, bias, support_ids_NK, chunk_tokens, temperature)
    teacher_NK = present(teacher_logprobs_NK, support_ids_NK)
    return _loss(buckets_NS, weight_VD.shape[0], teacher_NK, kind=kind, mix=mix, tail=tail)


def chunked_from_logits(
    logits_NV: torch.Tensor,
    support_ids_NK: torch.Tensor,
    teacher_logprobs_NK: torch.Tensor,
    *,
    kind: str,
    mix: float,
    tail: bool,
    chunk_tokens: int,
    temperature: float = 1.0,
) -> TokenDivergence:
    """`divergence.topk_divergence` of logits / temperature; their gradient is written in their dtype, chunk by chunk.

    Arguments and errors as in `chunked_topk_divergence`.
    """
    _check(chunk_tokens, temperature)
    buckets_NS = _BucketsOfLogits.apply(logits_NV, support_ids_NK, chunk_tokens, temperature)
    teacher_NK = present(teacher_logprobs_NK, support_ids_NK)
    return _loss(buckets_NS, logits_NV.shape[1], teacher_NK, kind=kind, mix=mix, tail=tail)


def _loss(
    buckets_NS: torch.Tensor, vocabulary: int, teacher_logprobs_NK: torch.Tensor, *, kind: str, mix: float, tail: bool
) -> TokenDivergence:
    """The loss of buckets; a support that is the whole vocabulary leaves none for a tail."""
    whole = buckets_NS.shape[1] - 1 == vocabulary
    buckets_NS = buckets_NS[:, :-1] if whole else buckets_NS
    return bucket_divergence(buckets_NS, teacher_logprobs_NK, kind=kind, mix=mix, tail=tail)
