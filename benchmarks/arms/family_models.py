"""A tiny model of each family that people train: its real architecture and the way its chat template speaks.

Weights are random; the tokenizer is the demo's byte-level BPE with the family's special tokens added.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SEED = 0
SIZES = {
    **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048, "initializer_range": 0.06},
}

CHATML = (
    "{%- if messages[0]['role'] != 'system' %}{{- SYSTEM }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def chatml(system: str = "") -> str:
    """ChatML, with a default system message where a family has one."""
    opening = f"'<|im_start|>system\\n{system}<|im_end|>\\n'" if system else "''"
    return CHATML.replace("SYSTEM", opening)


QWEN25 = chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
SMOLLM2 = chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
MISTRAL = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + '[/INST]' }}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}"
    "{%- endfor %}"
)
GEMMA = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Family:
    """What makes a family's model and prompt different from another's."""

    model_type: str
    """transformers' name of its configuration."""
    like: str
    """A published model of it."""
    template: str
    """Jinja, as its published models have it, without what tools and pictures need."""
    eos: str = "<|im_end|>"
    """What ends an answer."""
    bos: str | None = None
    added: tuple[str, ...] = ()
    """Special tokens of the template."""
    shape: tuple[tuple[str, Any], ...] = ()
    """Departures from `SIZES`."""


FAMILIES: dict[str, Family] = {
    "qwen2.5": Family("qwen2", "Qwen/Qwen2.5-0.5B-Instruct", QWEN25, shape=(("tie_word_embeddings", True),)),
    "qwen3": Family("qwen3", "Qwen/Qwen3-4B-Instruct-2507", chatml(), shape=(("tie_word_embeddings", True),)),
    "qwen3_moe": Family(
        "qwen3_moe",
        "Qwen/Qwen3-30B-A3B-Instruct-2507",
        chatml(),
        shape=(("num_experts", 4), ("num_experts_per_tok", 2), ("moe_intermediate_size", 64)),
    ),
    "qwen3.5": Family(
        "qwen3_5_text",
        "the text part of Qwen/Qwen3.5-4B",
        chatml(),
        shape=(
            *(("num_hidden_layers", 4), ("linear_num_key_heads", 2), ("linear_num_value_heads", 4)),
            *(("linear_key_head_dim", 32), ("linear_value_head_dim", 32), ("tie_word_embeddings", True)),
        ),
    ),
    "llama3": Family(
        "llama",
        "meta-llama/Llama-3.2-1B-Instruct",
        LLAMA3,
        "<|eot_id|>",
        "<|begin_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
        (("tie_word_embeddings", True), ("rms_norm_eps", 1e-5)),
    ),
    "smollm2": Family("llama", "HuggingFaceTB/SmolLM2-135M-Instruct", SMOLLM2, shape=(("tie_word_embeddings", True),)),
    "mistral": Family(
        "mistral",
        "mistralai/Mistral-7B-Instruct-v0.3",
        MISTRAL,
        "</s>",
        "<s>",
        ("[INST]", "[/INST]"),
        (("sliding_window", None),),
    ),
    "gemma3": Family(
        "gemma3_text",
        "google/gemma-3-1b-it",
        GEMMA,
        "<end_of_turn>",
        "<bos>",
        ("<start_of_turn>",),
        (("query_pre_attn_scalar", 32), ("sliding_window", 512), ("num_hidden_layers", 6)),
    ),
}


def write_family(name: str, folder: Path, tokenizer_of: Path) -> None:
    """A model and tokenizer of the family `name`, with the vocabulary of the tokenizer in `tokenizer_of`."""
    family = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    special = [family.eos, *([family.bos] if family.bos else []), *family.added]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template = family.eos, family.bos, family.template
    settings: dict[str, Any] = SIZES | dict(family.shape)
    settings |= {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("eos", "pad", "bos")}
    config = AutoConfig.for_model(family.model_type, vocab_size=len(tokenizer), dtype="float32", **settings)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config).float()
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
