"""Whether a model's experts may have adapters, where a machine without a GPU does not show it."""

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_ext.checks import architecture


@pytest.mark.parametrize(
    ("named", "merge", "said"),
    [
        (["q_proj", "gate_proj"], False, r"target_modules=\['q_proj', 'gate_proj'\]: .* set it to \[q_proj,k_proj"),
        ("all-linear", False, "target_modules=all-linear: "),
        (["q_proj", "o_proj"], False, None),
        (["gate_proj"], True, None),
    ],
)
def test_experts_are_not_adapted_on_a_gpu(tmp_path, named, merge, said):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "num_local_experts": 4}))
    model = {"lora_rank": 8, "target_modules": named, "lora": {"merge": merge}}
    config = OmegaConf.create({"actor_rollout_ref": {"model": model}, "trainer": {"device": "cuda"}})
    context: Any = SimpleNamespace(student=("student.path", str(tmp_path)), config=config)
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        architecture.experts(context)
