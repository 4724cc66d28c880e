"""Tinker's LoRA: rank 32 on the seven projections of each layer and on the output head."""

from collections.abc import Sequence
from typing import Any

import torch

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
"""`all-linear`, verl's default, is the first seven: PEFT leaves the output head out."""


def count_parameters(model_config: Any, rank: int, target_modules: Sequence[str] = TARGET_MODULES) -> int:
    """Parameters that a LoRA of `rank` trains on a model of this configuration; no memory is taken for it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(model_config)
        adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=list(target_modules)))
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def untie_head(model: Any) -> None:
    """Give the output head weights of its own, where it shares those of the input embedding.

    The adapter changes the head alone. Merged into a shared matrix, it would change the embedding too, and the
    merged model would be another one than the one trained.
    """
    if model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
