"""The CPU teacher's attention, against attention over the whole sequence."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[3] / "verl_ext/platform/sglang_cpu"))
from sglang_cpu_plugin.attention import attend_new_tokens


@pytest.mark.parametrize("new", [1, 3, 7])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_new_tokens_see_the_prefix_and_themselves(new: int, kv_heads: int):
    torch.manual_seed(0)
    whole, heads, width = 7, 4, 8
    query = torch.randn(whole, heads, width, dtype=torch.float64)
    key, value = (torch.randn(whole, kv_heads, width, dtype=torch.float64) for _ in range(2))
    shared = heads // kv_heads
    scores = torch.einsum("nhd,shd->hns", query, key.repeat_interleave(shared, 1)) * 0.5
    scores = scores.masked_fill(torch.ones(whole, whole, dtype=torch.bool).triu(1), float("-inf"))
    expected = torch.einsum("hns,shd->nhd", scores.softmax(-1), value.repeat_interleave(shared, 1))[-new:]
    found = attend_new_tokens(query[-new:], key, value, scaling=0.5, enable_gqa=kv_heads != heads)
    torch.testing.assert_close(found, expected)
