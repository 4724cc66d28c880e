"""Blocks of rows change nothing: values and gradients against `log_softmax` and `gather`."""

import math

import pytest
import torch

from verl_ext.method import token_logprobs as module
from verl_ext.method.token_logprobs import token_logprobs_

R, V, N = 7, 11, 9


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with gradient, rows, of which one is read four times and two never, and labels."""
    draw = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(R, V, generator=draw, dtype=torch.float64).mul(3).to(dtype)
    rows_N = torch.tensor([0, 0, 0, 0, 1, 2, 4, 5, 5])
    return logits_RV.requires_grad_(), rows_N, torch.randint(V, (N,), generator=draw)


def naive(
    logits_RV: torch.Tensor, rows_N: torch.Tensor, labels_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs_RV = (logits_RV / temperature).log_softmax(1)
    return logprobs_RV[rows_N, labels_N], -(logprobs_RV.exp() * logprobs_RV).sum(1)


def test_two_tokens_by_hand():
    """Logits 0 and log 3 are probabilities 1/4 and 3/4."""
    logits_RV = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)
    rows_N, labels_N = torch.tensor([0, 0]), torch.tensor([1, 0])
    found_N, entropy_R = token_logprobs_(logits_RV, rows_N, labels_N, entropy=True)
    assert entropy_R is not None
    assert found_N.tolist() == pytest.approx([math.log(0.75), math.log(0.25)])
    assert entropy_R.tolist() == pytest.approx([-0.25 * math.log(0.25) - 0.75 * math.log(0.75)])
    (grad_RV,) = torch.autograd.grad(2 * found_N[0], logits_RV)
    assert grad_RV[0].tolist() == pytest.approx([-0.5, 0.5])  # 2 x (0 - 1/4, 1 - 3/4)


@pytest.mark.parametrize("block", [1, 2 * V, 5 * V, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, -0.3)])
def test_values_and_gradients_are_those_of_log_softmax(block, temperature, weights, monkeypatch):
    monkeypatch.setattr(module, "CPU_BLOCK", block)
    logits_RV, rows_N, labels_N = problem()
    of_token_N, of_row_R = torch.linspace(-1, 2, N).double(), torch.linspace(1, 3, R).double()
    results = []
    for found_N, entropy_R in (
        naive(logits_RV, rows_N, labels_N, temperature),
        token_logprobs_(logits_RV, rows_N, labels_N, temperature=temperature, entropy=True),
    ):
        assert entropy_R is not None
        loss = weights[0] * (found_N * of_token_N).sum() + weights[1] * (entropy_R * of_row_R).sum()
        results.append((found_N, entropy_R, *torch.autograd.grad(loss, logits_RV)))
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_an_entropy_that_nobody_trains_and_one_that_nobody_asks_for():
    logits_RV, rows_N, labels_N = problem()
    other_RV = logits_RV.detach().clone().requires_grad_()
    found_N, entropy_R = token_logprobs_(logits_RV, rows_N, labels_N, entropy=True)
    alone_N, none = token_logprobs_(other_RV, rows_N, labels_N)
    assert entropy_R is not None
    assert none is None
    (wanted_RV,) = torch.autograd.grad(found_N.sum(), logits_RV)
    (found_RV,) = torch.autograd.grad(alone_N.sum(), other_RV)
    assert torch.equal(wanted_RV, found_RV)


def test_a_logit_of_minus_infinity_has_no_part():
    logits_RV, rows_N, _ = problem()
    with torch.no_grad():
        logits_RV[:, 3] = -torch.inf
    labels_N = torch.full((N,), 5)
    kept = [column for column in range(V) if column != 3]
    others_RV = logits_RV.detach()[:, kept].requires_grad_()
    found_N, entropy_R = token_logprobs_(logits_RV, rows_N, labels_N, entropy=True)
    assert entropy_R is not None
    (grad_RV,) = torch.autograd.grad(found_N.sum() + entropy_R.sum(), logits_RV)
    wanted_N, wanted_R = naive(others_RV, rows_N, labels_N - 1, 1.0)
    (wanted_RV,) = torch.autograd.grad(wanted_N.sum() + wanted_R.sum(), others_RV)
    torch.testing.assert_close((found_N, entropy_R, grad_RV[:, kept]), (wanted_N, wanted_R, wanted_RV))
    assert grad_RV[:, 3].abs().max() == 0


def test_half_logits_are_summed_in_fp32():
    logits_RV, rows_N, labels_N = problem(torch.bfloat16)
    wanted_N, _ = naive(logits_RV.detach().float(), rows_N, labels_N, 1.0)
    found_N, _ = token_logprobs_(logits_RV, rows_N, labels_N)
    torch.testing.assert_close(found_N, wanted_N)
    (grad_RV,) = torch.autograd.grad(found_N.sum(), logits_RV)
    assert grad_RV.dtype == torch.bfloat16


def test_the_gradient_takes_the_logits_memory_and_a_second_backward_is_refused():
    leaf_RV, rows_N, labels_N = problem()
    logits_RV = leaf_RV * 1.0
    found_N, _ = token_logprobs_(logits_RV, rows_N, labels_N)
    probs_RV = leaf_RV.detach().softmax(1)
    torch.testing.assert_close(logits_RV.detach(), probs_RV)
    (grad_RV,) = torch.autograd.grad(found_N.sum(), logits_RV, retain_graph=True)
    assert grad_RV.data_ptr() == logits_RV.data_ptr()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(found_N.sum(), logits_RV)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=r"temperature must be > 0"):
        token_logprobs_(*problem(), temperature=temperature)
