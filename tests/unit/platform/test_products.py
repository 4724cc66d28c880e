"""A linear layer by oneDNN: values and gradients are torch's own, and it takes what is its own alone."""

import pytest
import torch

from verl_ext.method.token_logprobs import token_logprobs_
from verl_ext.platform import products


@pytest.fixture
def counted(monkeypatch):
    """How many products were oneDNN's, with every `torch.nn.Linear` changed until the test ends."""
    calls = []
    theirs = products.product
    monkeypatch.setattr(torch.nn.Linear, "forward", torch.nn.Linear.forward)  # which puts it back
    monkeypatch.setattr(products, "product", lambda *args: calls.append(1) or theirs(*args))
    products.multiply_with_onednn()
    return calls


def trained(layer, rows):
    rows = rows.clone().requires_grad_()
    layer.zero_grad()
    output = layer(rows)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output.detach(), rows.grad, *(each.grad for each in layer.parameters())]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96, 256), (3, 32, 256)])
def test_values_and_gradients_are_those_of_linear(bias, shape, counted, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    layer, rows = torch.nn.Linear(256, 192, bias=bias), torch.randn(*shape, generator=draw)
    found = trained(layer, rows)
    assert len(counted) == 2  # forward, and the input's gradient
    monkeypatch.setattr(products, "SMALL", 2**60)
    for ours, wanted in zip(found, trained(layer, rows), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert len(counted) == 2


def test_the_output_may_be_written_over(counted):
    layer, labels = torch.nn.Linear(256, 192), torch.zeros(96, dtype=torch.long)
    logits = layer(torch.randn(1, 96, 256))
    found, _ = token_logprobs_(logits.reshape(-1, 192), torch.arange(96), labels)
    found.sum().backward()
    assert layer.weight.grad is not None
    assert len(counted) == 1


def test_a_frozen_weight_costs_no_gradient(counted):
    layer = torch.nn.Linear(256, 192).requires_grad_(False)
    rows = torch.randn(96, 256, requires_grad=True)
    layer(rows).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(rows.grad, layer.weight.sum(0).expand(96, -1))
    assert len(counted) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_and_small_products_are_torchs(dtype, counted):
    torch.nn.Linear(256, 192, dtype=dtype)(torch.randn(96, 256, dtype=dtype))
    torch.nn.Linear(256, 192)(torch.randn(2, 256))
    torch.nn.Linear(256, 192)(torch.randn(256))
    assert not counted


@pytest.mark.usefixtures("counted")
def test_it_changes_a_process_once():
    changed = torch.nn.Linear.forward
    products.multiply_with_onednn()
    assert torch.nn.Linear.forward is changed
