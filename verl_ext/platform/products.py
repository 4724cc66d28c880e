"""fp32 linear layers of a trainer on a CPU: their output and the gradient of their input by oneDNN.

torch asks MKL, the slower of the two there on a processor of another maker. On two cores of an AMD EPYC, 2,304 rows,
512 x 1,536: 210 against 167 GFLOP/s for the output, 210 against 190 for the input's gradient; 2,052 rows,
a head of 512 x 32,000: 164 against 149. For the gradient of a weight MKL is the faster one (172 against 111 there).
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor

SMALL = 2**22
"""Multiplications below which a product takes some 0.05 ms, and a call of Python's more than it saves."""


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of fp32 on a CPU, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class Linear(torch.autograd.Function):
    """rows (N, in), weight (out, in), bias (out,) or none: (N, out)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if of_rows else None,
            grad.t() @ rows if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def multiply_with_onednn() -> None:
    """In every `torch.nn.Linear` of this process, where its numbers are fp32 and it is worth a call."""
    theirs: Any = torch.nn.Linear.forward
    if not torch.backends.mkldnn.is_available() or theirs.__module__ == __name__:
        return

    def forward(self: torch.nn.Linear, input: Tensor) -> Tensor:
        is_ours = (
            type(self.weight) in (Tensor, torch.nn.Parameter)  # no shard of one
            and input.dtype == self.weight.dtype == torch.float32
            and input.device.type == "cpu"
            and input.dim() > 1
            and input.numel() * self.out_features > SMALL
            and not torch.is_autocast_enabled("cpu")
        )
        if not is_ours:
            return theirs(self, input)
        # What a function of its own returns as a view, nobody may write over (`token_logprobs_` does).
        return Linear.apply(input.flatten(0, -2), self.weight, self.bias).unflatten(0, input.shape[:-1])

    torch.nn.Linear.forward = forward
