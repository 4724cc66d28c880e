"""A prompt that samples share is read once, and nothing of the update changes: ours beside verl's engine."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry, base
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_ext.trainer import engine

FORWARDS = ("log_probs", "entropy")


def small(kind):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 50, "attn_implementation": "sdpa"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))


@pytest.fixture(scope="module")
def model():
    return small("qwen3")


def nested(rows):
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def micro_batch(**flags):
    """Six samples of three prompts, neighbours or not; one of them has no token."""
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randint(50, (length,), generator=draw) for length in (4, 7, 5)]
    prompts = [texts[number] for number in (0, 1, 0, 2, 1, 0)]
    responses = [torch.randint(50, (length,), generator=draw) for length in (3, 1, 4, 0, 5, 2)]
    whole = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    positions = [torch.arange(len(ids)) for ids in whole]
    fields = {"input_ids": whole, "position_ids": positions, "prompts": prompts, "responses": responses}
    columns = {key: nested(rows) for key, rows in fields.items()}
    flags = {"use_remove_padding": False, "calculate_entropy": True, "temperature": 1.0} | flags
    if isinstance(flags["temperature"], torch.Tensor):
        columns["temperature"] = flags.pop("temperature")
    return tu.get_tensordict(columns, non_tensor_dict=flags)


def forward(kind, model, batch):
    """As verl's `forward_step`: what goes into the model, and what the loss gets; the tokens that the model read."""
    made = object.__new__(kind)
    made.module, made.use_ulysses_sp, made.pad_to_length = model, False, False
    made.engine_config = SimpleNamespace(entropy_checkpointing=False)
    inputs, arguments = made.prepare_model_inputs(micro_batch=batch)
    outputs = made.prepare_model_outputs(model(**inputs, use_cache=False), arguments, batch, None)
    return outputs, inputs["input_ids"].numel()


def answers(outputs, batch):
    """Of the response tokens, which alone a loss reads."""
    starts = batch["input_ids"].offsets()[1:] - batch["responses"].offsets().diff() - 1
    read = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, batch["responses"].offsets().diff(), strict=True)])
    return {name: outputs[name].values()[read] for name in FORWARDS}


@pytest.mark.parametrize("temperature", [1.0, 0.5, torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 3.0])])
def test_log_probs_entropies_and_gradients_are_those_of_separate_rows(model, temperature):
    ours, theirs = (trained(kind, model, temperature) for kind in (engine.SharedPromptEngine, FSDPEngineWithLMHead))
    assert_same(ours, theirs)
    assert [ours.read, theirs.read] == [3 * (7 + 9), 6 * 12]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kind", engine.MASKABLE)
def test_every_kind_of_model_hands_its_layers_what_is_shared(kind, recomputed):
    model = small(kind)
    theirs = trained(FSDPEngineWithLMHead, model)
    if recomputed:
        model.train()
        model.gradient_checkpointing_enable()
    assert_same(trained(engine.SharedPromptEngine, model), theirs)


def trained(kind, model, temperature: Any = 1.0):
    batch = micro_batch(temperature=temperature)
    outputs, read = forward(kind, model, batch)
    found = answers(outputs, batch)
    weights = torch.linspace(-1, 2, len(found["log_probs"]))
    model.zero_grad()
    (weights * (found["log_probs"] + 0.1 * found["entropy"])).sum().backward()
    return SimpleNamespace(found=found, gradients=[each.grad.clone() for each in model.parameters()], read=read)


def assert_same(ours, theirs):
    for name in FORWARDS:
        torch.testing.assert_close(ours.found[name], theirs.found[name])
    for found, wanted in zip(ours.gradients, theirs.gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_entropy_that_is_not_trained_costs_no_backward_pass(model):
    batch = micro_batch(entropy_is_trained=False)
    outputs, _ = forward(engine.SharedPromptEngine, model, batch)
    assert not outputs["entropy"].requires_grad
    assert outputs["log_probs"].requires_grad


@pytest.mark.parametrize("flag", ["use_remove_padding", "use_fused_kernels", "distillation_use_topk"])
def test_what_needs_other_rows_or_all_logits_goes_verls_way(model, flag):
    made = object.__new__(engine.SharedPromptEngine)
    made.module = model
    assert made._shares(micro_batch())
    assert not made._shares(micro_batch(**{flag: True}))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma3"},
        {"layer_types": ["sliding_attention"]},
        {"_attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "eager"},
    ],
)
def test_only_models_that_attend_to_all_earlier_tokens_take_part(change):
    plain = {"model_type": "qwen3", "layer_types": ["full_attention"], "_attn_implementation": "sdpa"}
    assert engine.attends_to_all(SimpleNamespace(**plain))
    assert not engine.attends_to_all(SimpleNamespace(**plain | change))


def test_an_answer_sees_its_prompt_and_itself_and_padding_sees_itself():
    packed = engine.share_prompts(
        nested([torch.tensor([1]), torch.tensor([2, 3]), torch.tensor([1])]),
        nested([torch.tensor([4, 5]), torch.tensor([6]), torch.tensor([7])]),
    )
    assert packed.input_ids_GL.tolist() == [[0, 1, 4, 5, 7], [2, 3, 6, 0, 0]]
    assert packed.position_ids_GL.tolist() == [[0, 0, 1, 2, 1], [0, 1, 2, 0, 0]]
    rows = packed.attention
    assert rows.group_B.tolist() == [0, 1, 0]
    assert rows.places_BA.tolist() == [[0, 1], [3, 0], [2, 0]]
    assert rows.slots_GR.tolist() == [[0, 1, 4], [2, 0, 0]]
    assert seen(rows.prompt_mask_G1PP) == [[[0, 0], [1, 1]], [[0, 0], [1, 0], [1, 1]]]
    behind_one = [[0, 1], [0, 2], [1, 1], [1, 2], [1, 3]]
    behind_two = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [1, 3]]
    assert seen(rows.answer_mask_B1AK) == [behind_one, behind_two, behind_one]


def seen(mask_N1QK):
    return [mask_QK.nonzero().tolist() for mask_QK in mask_N1QK[:, 0]]


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("update", ["full", "lora", "qlora"])
def test_every_platform_takes_it(platform, update, compose_run, monkeypatch):
    """The driver counts by what it says of an update; verl's says nothing."""
    environment = compose_run(f"platform={platform}", f"update={update}").ray_kwargs.ray_init.runtime_env.env_vars
    monkeypatch.setattr(base, "get_device_name", lambda: platform)
    monkeypatch.setattr(base, "get_vendor", lambda: "nvidia")
    for name in ("VERL_ENGINE_DEVICE", "VERL_ENGINE_VENDOR"):
        monkeypatch.delenv(name, raising=False)
        if name in environment:
            monkeypatch.setenv(name, environment[name])
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is engine.SharedPromptEngine
