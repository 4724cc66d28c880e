"""A LoRA checkpoint as verl's FSDP engine leaves it, and the adapted model that it was taken from."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

RANK, ALPHA = 2, 6


def write_lora_checkpoint(folder: Path, base: Path, modules: tuple[str, ...] = ("q_proj", "lm_head")) -> Any:
    """Random adapters on `modules` in the folder `folder`, written by one rank; the adapted model."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted: Any = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(modules)))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    write_checkpoint(folder, adapted.state_dict())
    (folder / "lora_train_meta.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    return adapted.eval()


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "fsdp_config.json").write_text(json.dumps({"world_size": 1}))
    torch.save(state, folder / "model_world_size_1_rank_0.pt")
