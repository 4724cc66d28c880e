"""What vLLM is not even asked."""

import os

import pytest

from verl_ext.sampling.types import EngineConfig, SamplingConfig
from verl_ext.sampling.vllm import VllmSampler


def test_vllm_for_gpus_on_a_machine_without_one_is_said_in_one_line(monkeypatch):
    from vllm import platforms
    from vllm.platforms.interface import UnspecifiedPlatform

    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(platforms, "_current_platform", UnspecifiedPlatform())
    with pytest.raises(ValueError, match=r"for GPUs and finds none: .* `make setup`"):
        VllmSampler("no/model", SamplingConfig(), EngineConfig(), [])
