"""verl's FSDP2 engine and PEFT, as far as a base in 4 bits stands on them (`verl_ext/trainer/nf4.py`)."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora.layer import Linear
from seams import parameters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Qwen3Config, Qwen3ForCausalLM
from verl.utils import fsdp_utils
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

from verl_ext.trainer.engine import SharedPromptEngine
from verl_ext.trainer.nf4 import NF4Linear

TARGETS = ["q_proj", "o_proj", "down_proj"]


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setattr(fsdp_utils, "get_device_id", lambda: "cpu")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def built(base):
    """A tiny model with adapters, as our engine builds it from verl's settings."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(**shape, num_key_value_heads=1, head_dim=32, vocab_size=50))
    made = object.__new__(SharedPromptEngine)
    settings = {"lora_rank": 4, "lora_alpha": 4, "target_modules": TARGETS, "target_parameters": None}
    made.model_config = SimpleNamespace(**settings, exclude_modules=None, lora={"base": base} if base else {})
    return made._build_lora_module(model)


def test_the_engine_builds_the_adapters_in_one_place_before_it_shards():
    assert parameters(FSDPEngine._build_lora_module) == ["self", "module"]
    source = inspect.getsource(FSDPEngine._build_model_optimizer)
    assert source.index("_build_lora_module") < source.index("_build_fsdp_module")


@pytest.mark.parametrize(("base", "layers"), [(None, 0), ("nf4", 6)])
def test_the_setting_decides(base, layers):
    assert len([module for module in built(base).modules() if isinstance(module, NF4Linear)]) == layers


def test_peft_asks_nothing_of_the_base_in_a_forward_pass_but_its_output():
    source = inspect.getsource(Linear.forward)
    assert "result = self.base_layer(x, *args, **kwargs)" in source
    assert "base_layer.weight" not in source


def test_verls_loader_shards_the_rest_and_sends_the_codes_as_buffers(one_rank):
    model = built("nf4").eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    full = model.state_dict()
    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=True)
    kwargs = {"mesh": one_rank, "mp_policy": policy, "offload_policy": None, "reshard_after_forward": True}
    fsdp_utils.apply_fsdp2(model, kwargs, {"wrap_policy": {}})
    fsdp_utils.fsdp2_load_full_state_dict(model, full, one_rank, None)
    assert "for name, buf in bufs:\n        dist.broadcast(buf, src=0)" in inspect.getsource(
        fsdp_utils.fsdp2_load_full_state_dict
    )
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, wanted)
    sent = fsdp_utils.collect_lora_params(model, layered_summon=False, base_sync_done=True)
    assert len(sent) == 2 * 6
    assert all("lora_" in name for name in sent)
