"""One random number a sampled token, for requests with a seed of their own on a CPU.

vLLM takes the largest of probabilities over exponential numbers, which a GPU draws at once. On a CPU it draws one for
every token of the vocabulary, twice: half of the time of sampling with 32,000 tokens. The inverse of the cumulative
distribution takes one uniform number and gives the same distribution.

How many tokens are as likely as the sampled one, which vLLM counts for each log-prob, is compiled in vLLM, which takes
a C++ compiler longer than it will ever save. Here the comparisons are numbers that are added up as they are.

Shapes: `B` requests, `V` vocabulary, `K` blocks of it, `X` tokens of a block.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
"""Tokens."""


def draw_one_number_a_token() -> None:
    """Where every request of a batch has a seed; else vLLM's own way."""
    from vllm.v1.sample.ops import topk_topp_sampler as ops

    theirs: Any = ops.TopKTopPSampler.forward_cpu

    def forward_cpu(
        self: Any, logits: Tensor, generators: Mapping[int, torch.Generator], k: Any, p: Any
    ) -> tuple[Tensor, Tensor | None]:
        if len(generators) != len(logits):
            return theirs(self, logits, generators, k, p)
        logits_BV = ops.apply_top_k_top_p(logits, k, p)
        returned_BV = None
        if self.logprobs_mode == "processed_logits":
            returned_BV = logits_BV
        elif self.logprobs_mode == "processed_logprobs":
            returned_BV = logits_BV.log_softmax(dim=-1, dtype=torch.float32)
        numbers = [torch.rand((), dtype=torch.float64, generator=generators[row]) for row in range(len(logits_BV))]
        return pick(logits_BV.softmax(dim=-1, dtype=torch.float32), torch.stack(numbers)), returned_BV

    ops.TopKTopPSampler.forward_cpu = forward_cpu


def pick(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """(B,) token ids: the first whose cumulative probability exceeds a number in [0, 1); none of probability 0.

    The block of tokens that it is in is found by the blocks' sums, which are faster made than cumulative ones.
    """
    if missing := -probabilities_BV.shape[1] % BLOCK:
        probabilities_BV = functional.pad(probabilities_BV, (0, missing))
    blocks_BKX = probabilities_BV.unflatten(1, (-1, BLOCK))
    up_to_BK = blocks_BKX.sum(-1).cumsum(-1, dtype=torch.float64)
    wanted_B1 = _below(uniform_B[:, None] * up_to_BK[:, -1:], up_to_BK[:, -1:])
    block_B1 = torch.searchsorted(up_to_BK, wanted_B1, right=True)
    in_block_BX = blocks_BKX[torch.arange(len(block_B1)), block_B1[:, 0]].cumsum(-1, dtype=torch.float64)
    rest_B1 = wanted_B1 - functional.pad(up_to_BK, (1, 0)).gather(1, block_B1)
    token_B1 = torch.searchsorted(in_block_BX, _below(rest_B1, in_block_BX[:, -1:]), right=True)
    return (block_B1 * BLOCK + token_B1).view(-1)


def _below(number: Tensor, bound: Tensor) -> Tensor:
    """The number, or the greatest below the bound, which rounding may have reached."""
    return torch.minimum(number, torch.nextafter(bound, torch.zeros_like(bound)))


def count_ranks_uncompiled() -> None:
    """The rank of a sampled token among all."""
    from vllm.v1.sample import sampler

    asks: Any = sampler
    asks.batched_count_greater_than = at_least


def at_least(logprobs_BV: Tensor, sampled_B1: Tensor) -> Tensor:
    """(B,) int64: how many log-probs of a row are its value or above; fp32 counts to 2^24."""
    return torch.ge(logprobs_BV, sampled_B1, out=torch.empty_like(logprobs_BV)).sum(-1).long()
