"""Log-probs of sampled tokens, and entropies, from logits beside which nothing as large is made but their gradient.

Written with `log_softmax` and `gather`, autograd makes and walks over some ten tensors of the logits' size; on a CPU,
where memory is slow, that takes as long as the model's own products. Here a block of rows is worked on while the cache
holds it, and backward makes its probabilities again.

Shapes: `R` rows of logits, `V` vocabulary, `c` a block of rows, `N` tokens, of which several may look at one row.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from verl_ext.method.divergence import LOGPROB_FLOOR, wide

Tensor = torch.Tensor

CPU_BLOCK, BLOCK = 2**19, 2**26
"""fp32 logits of a block: 2 MiB stay in a core's cache; elsewhere fewer kernels matter more."""


def token_logprobs(
    logits_RV: Tensor, rows_N: Tensor, labels_N: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each token under its row of logits / temperature, (N,); on demand also rows' entropies, (R,). Nats.

    Both are at least fp32 and have a gradient. In a logit it is ([its token is the label] - p) / temperature, and
    -p (log p + H) / temperature for the entropy H.

    Args:
        logits_RV: fp64, fp32 or half; the gradient has their dtype.
        rows_N: the row that predicts a token.
        labels_N: the token.
        temperature: of the student's distribution, > 0.
        entropy: whether entropies are asked for.

    Raises:
        ValueError: on a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    return _TokenLogprobs.apply(logits_RV, rows_N, labels_N, temperature, entropy)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, logits_RV: Tensor, rows_N: Tensor, labels_N: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logsumexp_R = wide(logits_RV.new_empty(len(logits_RV)))
        entropy_R = torch.empty_like(logsumexp_R) if entropy else None
        for rows in _blocks(logits_RV):
            scaled_cV = _scaled(logits_RV[rows], temperature)
            logsumexp_R[rows] = scaled_cV.logsumexp(1)
            if entropy_R is not None:
                logprobs_cV = _logprobs_(scaled_cV, logsumexp_R[rows])
                entropy_R[rows] = -torch.linalg.vecdot(logprobs_cV.exp(), logprobs_cV)
        ctx.save_for_backward(logits_RV, rows_N, labels_N, logsumexp_R, entropy_R)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return wide(logits_RV[rows_N, labels_N]) / temperature - logsumexp_R[rows_N], entropy_R

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_N: Tensor | None, grad_entropy_R: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits_RV, rows_N, labels_N, logsumexp_R, entropy_R = ctx.saved_tensors
        of_token_N = logsumexp_R.new_zeros(len(rows_N)) if grad_N is None else grad_N / ctx.temperature
        of_row_R = torch.zeros_like(logsumexp_R).index_add_(0, rows_N, of_token_N)
        grad_RV = torch.empty_like(logits_RV)
        for rows in _blocks(logits_RV):
            logprobs_cV = _logprobs_(_scaled(logits_RV[rows], ctx.temperature), logsumexp_R[rows])
            if grad_entropy_R is None:
                grad_RV[rows] = logprobs_cV.exp_().mul_(-of_row_R[rows, None])
            else:
                probs_cV = logprobs_cV.exp()
                of_entropy_c1 = grad_entropy_R[rows, None] / ctx.temperature
                factor_cV = logprobs_cV.add_(entropy_R[rows, None]).mul_(of_entropy_c1).add_(of_row_R[rows, None])
                grad_RV[rows] = probs_cV.mul_(factor_cV).neg_()
        grad_RV.index_put_((rows_N, labels_N), of_token_N.to(grad_RV.dtype), accumulate=True)
        return grad_RV, None, None, None, None


def _scaled(logits_cV: Tensor, temperature: float) -> Tensor:
    """Over the temperature, at least fp32, in memory of its own."""
    return logits_cV.to(wide(logits_cV[:0]).dtype, copy=True).div_(temperature)


def _logprobs_(scaled_cV: Tensor, logsumexp_c: Tensor) -> Tensor:
    """Written over the logits; finite, so that 0 log 0 is 0."""
    return scaled_cV.sub_(logsumexp_c[:, None]).clamp_(min=LOGPROB_FLOOR)


def _blocks(logits_RV: Tensor) -> list[slice]:
    """Slices of the rows."""
    rows, vocabulary = logits_RV.shape
    size = max(1, (CPU_BLOCK if logits_RV.device.type == "cpu" else BLOCK) // vocabulary)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
