"""Sampling with a seed on a CPU: the distribution is vLLM's, and each request's numbers are its own."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.sample.ops import topk_topp_sampler as ops

from verl_ext.platform.vllm_draws import BLOCK, draw_one_number_a_token, pick

ROWS, VOCABULARY = 20_000, 6
LOGITS = torch.tensor([0.3, -1.0, float("-inf"), 1.2, 0.0, float("-inf")])


@pytest.fixture
def forward(monkeypatch):
    """vLLM's `forward_cpu` with ours in its place."""
    theirs = ops.TopKTopPSampler.forward_cpu
    monkeypatch.setattr(ops.TopKTopPSampler, "forward_cpu", theirs)  # which puts it back
    assert "for i, generator in generators.items():" in inspect.getsource(theirs)  # what is slow
    draw_one_number_a_token()

    def call(logits_BV, generators, mode="raw_logprobs", k=None):
        sampler = SimpleNamespace(logprobs_mode=mode, use_fp64_gumbel=False)
        return ops.TopKTopPSampler.forward_cpu(sampler, logits_BV.clone(), generators, k, None)  # pyright: ignore[reportArgumentType]

    return call


def seeded(rows, first=0):
    return {row: torch.Generator().manual_seed(first + row) for row in range(rows)}


def test_tokens_come_as_often_as_they_are_likely(forward):
    ids, returned = forward(LOGITS.expand(ROWS, VOCABULARY), seeded(ROWS))
    counts_V = torch.bincount(ids, minlength=VOCABULARY).double()
    expected_V = LOGITS.softmax(-1).double() * ROWS
    possible_V = expected_V > 0
    assert counts_V[~possible_V].sum() == 0
    chi_square = ((counts_V - expected_V) ** 2 / expected_V)[possible_V].sum()
    assert chi_square < 16.3  # 3 degrees of freedom, P = 0.001
    assert returned is None


def test_a_requests_tokens_are_those_of_its_seed_whatever_is_sampled_beside_it(forward):
    logits_BV = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    together, _ = forward(logits_BV, seeded(8))
    alone = [forward(logits_BV[row : row + 1], seeded(1, first=row))[0].item() for row in range(8)]
    assert together.tolist() == alone
    assert together.tolist() != forward(logits_BV, seeded(8, first=100))[0].tolist()


def test_what_is_returned_is_vllms(forward):
    logits_BV = torch.randn(3, 10, generator=torch.Generator().manual_seed(2))
    for mode, wanted_BV in (("processed_logits", logits_BV), ("processed_logprobs", logits_BV.log_softmax(-1))):
        assert torch.equal(forward(logits_BV, seeded(3), mode)[1], wanted_BV)
    ids, _ = forward(logits_BV, seeded(3), k=torch.tensor([1, 1, 1]))
    assert ids.tolist() == logits_BV.argmax(-1).tolist()


def test_requests_without_a_seed_go_vllms_way(forward, monkeypatch):
    monkeypatch.setattr(ops, "compiled_random_sample", lambda _: "vLLM's")
    assert forward(torch.zeros(2, 4), seeded(1))[0] == "vLLM's"


def test_the_ends_of_the_range():
    probabilities_BV = torch.tensor([[0.0, 0.25, 0.75, 0.0]] * 4)
    uniform_B = torch.tensor([0.0, 0.2499, 0.25, 1 - 2**-53], dtype=torch.float64)
    assert pick(probabilities_BV, uniform_B).tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("vocabulary", [3 * BLOCK, 3 * BLOCK + 44])
def test_blocks_choose_what_one_cumulative_sum_chooses(vocabulary):
    draw = torch.Generator().manual_seed(3)
    probabilities_BV = torch.randn(2_000, vocabulary, generator=draw).mul(3).softmax(-1)
    probabilities_BV[:, : BLOCK + 5] = 0
    probabilities_BV[:, -3:] = 0
    uniform_B = torch.rand(2_000, generator=draw, dtype=torch.float64)
    uniform_B[:2] = torch.tensor([0.0, 1 - 2**-53])
    cumulative_BV = probabilities_BV.double().cumsum(-1)
    below_B1, above_B1 = (cumulative_BV[:, -1:] * (uniform_B[:, None] + by) for by in (-1e-6, 1e-6))
    found_B1 = pick(probabilities_BV, uniform_B)[:, None]
    assert (probabilities_BV.gather(1, found_B1) > 0).all()
    assert (found_B1 >= torch.searchsorted(cumulative_BV, below_B1, right=True)).all()
    assert (found_B1 <= torch.searchsorted(cumulative_BV, above_B1, right=True)).all()
    assert found_B1[0] == BLOCK + 5  # the first that is possible
    assert found_B1[1] == vocabulary - 4  # the last
