"""Frozen linear layers in 4 bits (NF4, arXiv 2305.14314) below their LoRA adapters: `update=qlora`.

A weight is kept as 16 levels, two to a byte, and a scale for each block of 64: 4.5 bits, those of bitsandbytes. It is
made whole where a layer multiplies with it, in the backward pass once more, and at no other time. The codes are
buffers: FSDP2 shards parameters alone, so every rank holds all of them, and verl's loader sends them from rank 0.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor

NF4 = "nf4"
"""Of `actor_rollout_ref.model.lora.base`."""
BLOCK = 64
"""Weights that share a scale."""
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of a normal distribution with largest value 1."""


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, (elements / 2,) uint8, and fp32 scales, (elements / BLOCK,), of a weight; on `meta` their shapes.

    Raises:
        ValueError: if its elements are no multiple of BLOCK.
    """
    if weight.numel() % BLOCK:
        raise ValueError(
            f"update=qlora: a weight of {tuple(weight.shape)} has no multiple of {BLOCK} elements; use update=lora"
        )
    blocks = weight.detach().float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    levels = torch.tensor(LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], between).to(
        torch.uint8
    )
    first, second = codes.reshape(-1, 2).unbind(dim=1)
    return first * 16 + second, scales


def unpack(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight that `pack` made them of, rounded to its levels."""
    levels = torch.tensor(LEVELS, device=codes.device)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)  # by byte
    return (pairs[codes.int()].reshape(-1, BLOCK) * scales[:, None]).to(dtype).reshape(shape)


class _Product(torch.autograd.Function):
    """`F.linear` that keeps the codes for the backward pass, not the weight."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.shape = shape
        return F.linear(inputs, unpack(codes, scales, shape, inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        codes, scales = ctx.saved_tensors
        return gradient @ unpack(codes, scales, ctx.shape, gradient.dtype), None, None, None


class NF4Linear(nn.Module):
    """A frozen `nn.Linear` in 4 bits; its bias, where it has one, stays as it was."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        codes, scales = pack(linear.weight)
        self.register_buffer("codes", codes, persistent=False)  # a checkpoint holds adapters alone
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        product = _Product.apply(inputs, self.codes, self.scales, (self.out_features, self.in_features))
        return product if self.bias is None else product + self.bias


def freeze_in_4_bits(adapted: nn.Module) -> int:
    """Put the base of every LoRA layer of a PEFT model into 4 bits, in place; how many layers that were.

    What has no adapter (embeddings, head, norms, routers) stays as it is.

    Raises:
        ValueError: where a layer with an adapter is no `nn.Linear`, or there is none.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        if type(layer.base_layer) is not nn.Linear:
            kind = type(layer.base_layer).__name__
            raise ValueError(
                f"update=qlora puts linear layers into 4 bits, and an adapter is on a {kind}: use update=lora"
            )
        layer.base_layer = NF4Linear(layer.base_layer)
    if not layers:
        raise ValueError("update=qlora found no layer with an adapter: set actor_rollout_ref.model.target_modules")
    return len(layers)
