"""vLLM's own kernels for adapters on a CPU, with a row that has none beside rows that have one (`vllm_prompts.py`)."""

import pytest
import torch

from verl_ext.platform.vllm_prompts import rows_without_adapter_stay_so

RANK, WIDTH, OUT = 2, 8, 6
ADAPTER = 1


@pytest.fixture
def cpu_kernels(monkeypatch: pytest.MonkeyPatch):
    """vLLM's class, as it is and as we leave it."""
    from vllm.lora.punica_wrapper import punica_cpu

    monkeypatch.setattr(punica_cpu, "PunicaWrapperCPU", type("Copy", (punica_cpu.PunicaWrapperCPU,), {}))
    return punica_cpu


def added(kernels, mapping: tuple[int, ...], lengths: tuple[int, ...], *, prefill: bool) -> torch.Tensor:
    """What an adapter adds to each row of a layer's output; `mapping` names the adapter of each request, 0 for none."""
    from vllm.lora.layers.utils import LoRAMapping

    tokens = tuple(adapter for adapter, length in zip(mapping, lengths, strict=True) for _ in range(length))
    wrapper = kernels.PunicaWrapperCPU(64, 8, "cpu")
    wrapper.update_metadata(LoRAMapping(tokens, mapping, is_prefill=prefill), [ADAPTER], 1, 32)
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 1, *shape, generator=draw) for shape in ((RANK, WIDTH), (OUT, RANK)))
    x, y = torch.randn(len(tokens), WIDTH, generator=draw), torch.zeros(len(tokens), OUT)
    wrapper.add_lora_linear(y, x, (first,), (second,), 1.0, (OUT,))
    expected = x @ first[0, 0].T @ second[0, 0].T
    return torch.stack([y.abs().amax(-1), (y - expected).abs().amax(-1)])


@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("mapping", [(ADAPTER, 0, ADAPTER), (0, ADAPTER, 0), (0, 0, 0), (ADAPTER,) * 3])
def test_a_request_without_adapter_gets_none_beside_others(cpu_kernels, mapping, prefill):
    rows_without_adapter_stay_so()
    lengths = (1, 3, 2) if prefill else (1, 1, 1)
    size, error = added(cpu_kernels, mapping, lengths, prefill=prefill)
    has = torch.tensor([adapter > 0 for adapter, length in zip(mapping, lengths, strict=True) for _ in range(length)])
    assert not size[~has].any()
    assert (size[has] > 0.1).all()
    assert (error[has] < 1e-5).all()


def test_vllm_itself_gives_it_the_last_adapter(cpu_kernels):
    """When this fails, vLLM has mended it, and ours can go."""
    size, _ = added(cpu_kernels, (ADAPTER, 0), (1, 2), prefill=True)
    assert (size > 0.1).all()
