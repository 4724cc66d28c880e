"""Log-probs of sampled tokens, and entropies, from logits that give their memory to what backward needs.

Written with `log_softmax` and `gather`, autograd makes and walks over some ten tensors of the logits' size; on a CPU,
where memory is slow, that takes as long as the model's own products. Here a block of rows is worked on while the cache
holds it, its probabilities take the logits' place, and the gradient takes the probabilities'.

Shapes: `R` rows of logits, `V` vocabulary, `c` a block of rows, `N` tokens, of which several may look at one row.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from verl_ext.method.divergence import LOGPROB_FLOOR, wide

Tensor = torch.Tensor

CPU_BLOCK, BLOCK = 2**20, 2**26
"""fp32 logits of a block: 4 MiB are near a processor, and few enough calls; elsewhere fewer kernels matter more."""


def token_logprobs_(
    logits_RV: Tensor, rows_N: Tensor, labels_N: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each token under its row of logits / temperature, (N,); on demand also rows' entropies, (R,). Nats.

    Both are at least fp32 and have a gradient. In a logit it is ([its token is the label] - p) / temperature, and
    -p (log p + H) / temperature for the entropy H. The logits are overwritten; backward runs once.

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
        chosen_N = wide(logits_RV[rows_N, labels_N]) / temperature
        logsumexp_R = wide(logits_RV.new_empty(len(logits_RV)))
        entropy_R = torch.empty_like(logsumexp_R) if entropy else None
        for rows in _blocks(logits_RV):
            shifted_cV = wide(logits_RV[rows])  # fp32 and fp64: the logits' own memory
            if temperature != 1:
                shifted_cV.div_(temperature)
            highest_c1 = shifted_cV.amax(1, keepdim=True)
            weights_cV = shifted_cV.sub_(highest_c1).clamp_(min=LOGPROB_FLOOR).exp()  # finite, so that 0 log 0 is 0
            total_c = weights_cV.sum(1)
            logsumexp_R[rows] = highest_c1[:, 0] + total_c.log()
            if entropy_R is not None:
                entropy_R[rows] = total_c.log() - torch.linalg.vecdot(weights_cV, shifted_cV) / total_c
            torch.div(weights_cV, total_c[:, None], out=logits_RV[rows])
        ctx.save_for_backward(logits_RV, rows_N, labels_N, entropy_R)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return chosen_N - logsumexp_R[rows_N], entropy_R

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_N: Tensor | None, grad_entropy_R: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        probs_RV, rows_N, labels_N, entropy_R = ctx.saved_tensors
        of_row_R = wide(probs_RV.new_zeros(len(probs_RV)))
        of_token_N = of_row_R.new_zeros(len(rows_N)) if grad_N is None else grad_N / ctx.temperature
        of_row_R.index_add_(0, rows_N, of_token_N)
        for rows in _blocks(probs_RV):
            if grad_entropy_R is None:
                probs_RV[rows].mul_(-of_row_R[rows, None])
            else:
                of_entropy_c1 = grad_entropy_R[rows, None] / ctx.temperature
                factor_cV = wide(probs_RV[rows]).log().clamp_(min=LOGPROB_FLOOR).add_(entropy_R[rows, None])
                probs_RV[rows].mul_(factor_cV.mul_(of_entropy_c1).add_(of_row_R[rows, None]).neg_())
        probs_RV.index_put_((rows_N, labels_N), of_token_N.to(probs_RV.dtype), accumulate=True)
        return probs_RV, None, None, None, None


def _blocks(logits_RV: Tensor) -> list[slice]:
    """Slices of the rows."""
    rows, vocabulary = logits_RV.shape
    size = max(1, (CPU_BLOCK if logits_RV.device.type == "cpu" else BLOCK) // vocabulary)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
