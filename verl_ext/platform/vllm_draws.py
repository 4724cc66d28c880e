"""One random number a sampled token, for requests with a seed of their own on a CPU.

vLLM takes the largest of probabilities over exponential numbers, which a GPU draws at once. On a CPU it draws one for
every token of the vocabulary, twice: half of the time of sampling with 32,000 tokens. The inverse of the cumulative
distribution takes one uniform number and gives the same distribution.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
    """(B,) token ids: the first whose cumulative probability exceeds a number in [0, 1); none of probability 0."""
    cumulative_BV = probabilities_BV.cumsum(dim=-1, dtype=torch.float64)
    wanted_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
    return torch.searchsorted(cumulative_BV, wanted_B1, right=True).view(-1)
