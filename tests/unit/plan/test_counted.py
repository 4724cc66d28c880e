"""Parameters, layers and caches of a model: by formula, and counted on the meta device."""

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.arms.family_models import FAMILIES, SIZES
from verl_ext.plan import memory
from verl_ext.plan.counted import count
from verl_ext.plan.run import read_run
from verl_ext.plan.shape import UnknownModelError, load_shape, published
from verl_ext.run.model_shape import ATTENTION, PROJECTIONS, shape_from

DENSE = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
UNTIED = DENSE | {"tie_word_embeddings": False}
EXPERTS = {"model_type": "qwen3_moe", "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
MODELS = {"tied": DENSE, "untied": UNTIED, "experts": UNTIED | EXPERTS}


def meta_model(config):
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **settings))


NUMBERS = (
    *(
        "hidden",
        "layers",
        "heads",
        "kv_heads",
        "head_size",
        "intermediate",
        "vocab",
        "tied",
        "experts",
        "active_experts",
    ),
    *("fp8", "total", "active", "layer", "linear", "root", "embedding", "caching", "projections"),
)
"""Of a shape, all that a plan is made of."""


def numbers(shape):
    adapters = shape.lora(8, (*shape.projections, "lm_head"))
    caches = memory.kv_bytes(shape, tp=1), memory.largest_tensor(shape), memory.stored_bytes(shape, 2, fp8=True)
    weights = {name: shape.weights(name) for name in shape.projections}
    return {name: getattr(shape, name) for name in NUMBERS} | {"adapters": adapters, "bytes": caches} | weights


@pytest.mark.parametrize("name", [*MODELS, "qwen2", "llama", *published()])
def test_the_formulas_equal_what_is_counted_on_the_meta_device(name):
    """Of every family that has formulas, and every published model that the shipped configurations name."""
    other = {"qwen2": DENSE | {"model_type": "qwen2"}, "llama": UNTIED | {"model_type": "llama"}}
    config = (MODELS | other | published())[name]
    if name == "qwen2":
        config = {key: value for key, value in config.items() if key != "head_dim"} | {"hidden_size": 64}
    assert numbers(shape_from(config)) == numbers(count(config))


def test_shipped_models_are_planned_without_torch():
    words = [(Path("configs/model") / file.name).read_text() for file in Path("configs/model").iterdir()]
    named = {name for text in words for name in re.findall(r"Qwen/[\w.-]+", text)}
    assert named <= published().keys()


FAMILY_CACHES = {"qwen3.5": 1, "gemma3": 6}
"""Layers of the tiny models that keep keys and values, where not all do or some see a window."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_counted_as_pefts_and_transformers_modules(name, tmp_path):
    from peft import LoraConfig, get_peft_model

    family = FAMILIES[name]
    config = {"model_type": family.model_type, "vocab_size": 96} | SIZES | dict(family.shape)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape, model = load_shape("student.path", str(tmp_path)), meta_model(config)
    assert shape.total == sum(parameter.numel() for parameter in model.parameters())
    assert shape.layer == max(sum(p.numel() for p in layer.parameters()) for layer in model.model.layers)
    layers = FAMILY_CACHES.get(name, 2)
    keys = [m.out_features for key, m in model.named_modules() if key.rpartition(".")[2] in ("k_proj", "v_proj")]
    assert shape.caching == layers
    assert memory.kv_bytes(shape, tp=1) == 2 * sum(keys)
    # With experts, PEFT's all-linear is more than that (see the next test).
    targets = list(shape.projections) if shape.experts else "all-linear"
    with torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets))
    assert shape.lora(8, shape.projections) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_all_linear_of_experts_is_not_planned(compose_run, tmp_path):
    """PEFT adapts experts and router too then, in ways that follow no rank."""
    (tmp_path / "config.json").write_text(json.dumps(MODELS["experts"]))
    words = ("platform=cpu", "task=demo", f"student.path={tmp_path}", "update=lora")
    with pytest.raises(UnknownModelError, match=r"target_modules=all-linear: .*q_proj, k_proj, v_proj, o_proj"):
        read_run(compose_run(*words, "actor_rollout_ref.model.target_modules=all-linear"))


def test_a_composite_model_is_counted_whole():
    from transformers import AutoConfig, AutoModelForImageTextToText

    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 96, **SIZES, **dict(FAMILIES["gemma3"].shape)}
    config = {
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": vision | {"image_size": 28, "patch_size": 14},
    }
    with torch.device("meta"):
        known = AutoConfig.for_model("gemma3", text_config=text, vision_config=config["vision_config"])
        whole = AutoModelForImageTextToText.from_config(known)
    shape, alone = count(config), count({"model_type": "gemma3_text", **text})
    assert shape.total == sum(parameter.numel() for parameter in whole.parameters()) > alone.total
    assert (shape.hidden, shape.caching, shape.layer) == (alone.hidden, alone.caching, alone.layer)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("tied", PROJECTIONS),
        ("untied", (*PROJECTIONS, "lm_head")),
        ("untied", ("q_proj", "v_proj")),
        ("experts", ATTENTION),
    ],
)
def test_adapters_equal_pefts(name, targets):
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        adapted = get_peft_model(meta_model(MODELS[name]), LoraConfig(r=8, target_modules=list(targets)))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert shape_from(MODELS[name]).lora(8, targets) == trained


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30_532_122_624),
    ],
)
def test_the_published_sizes_hold(name, total):
    shape = shape_from(published()[name])
    assert shape.total == total
    assert shape.active == (total if not shape.experts else 3_353_032_704)  # "3.3 B active"


def test_experts_are_not_adapted():
    with pytest.raises(ValueError, match=r"target_modules: gate_proj"):
        shape_from(MODELS["experts"]).lora(8, ("q_proj", "gate_proj"))


def test_a_local_folder_goes_before_the_table_and_an_unknown_model_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    assert load_shape("student.path", str(tmp_path)) == shape_from(DENSE)
    with pytest.raises(ValueError, match=r"student\.path=someone/else: no such folder.*config\.json"):
        load_shape("student.path", "someone/else")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "mine"}, "builds no language model of model_type 'mine' .*leave out hardware=NAME"),
        ({"model_type": "t5"}, "builds no language model of model_type 't5'"),
        ({"model_type": "llama", "num_attention_heads": "four"}, "builds no language model of model_type 'llama'"),
        ({"model_type": "mistral", "intermediate_size": None}, "intermediate_size"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 8, "num_hidden_layers": 1}, "latent attention .*kv_lora_rank"),
    ],
)
def test_a_model_that_cannot_be_counted_is_refused_in_one_line(tmp_path, change, reason):
    (tmp_path / "config.json").write_text(json.dumps(DENSE | change))
    with pytest.raises(UnknownModelError, match=rf"^student\.path=.*{reason}") as raised:
        load_shape("student.path", str(tmp_path))
    assert "\n" not in str(raised.value)
