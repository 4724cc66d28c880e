"""Our side of the comparison: the SFT run as its trainer really builds it, and what labels are sampled with.

    python -m verl_ext.tinker.ours request.json notes.json

A process of its own, because verl reads its environment when it is imported. Nothing is trained. Keys of the
request: those of `verl_ext.tinker.oracle`, `overrides` (of `recipe.sft`), `config_dir`, `lora_model_config` (JSON).
"""

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_ext.data import sentences as data
from verl_ext.data.conversations import conversation, read_label, to_jsonl
from verl_ext.data.rows import LABELS, make_row, tinker_prompt
from verl_ext.run.models import load_tokenizer, render_chat
from verl_ext.run.settings import mapping_of
from verl_ext.sampling.types import SamplingConfig
from verl_ext.tinker.oracle import digest, pick

ADAPTED_BLOCKS = {
    "train_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "train_mlp": {"gate_proj", "up_proj", "down_proj"},
    "train_unembed": {"lm_head"},
}
"""Tinker's names for groups of layers."""


def training(request: dict[str, Any]) -> dict[str, Any]:
    """Build the trainer as `recipe.sft` does and read its objects."""
    from hydra import compose, initialize_config_dir

    from verl_ext.checks.schemas import prepare_training_configs
    from verl_ext.sft.environment import prepare_environment

    prepare_training_configs()
    with initialize_config_dir(request["config_dir"], version_base=None):
        config = compose("sft", request["overrides"])
    prepare_environment(mapping_of(config.environment))

    from verl_ext.sft.trainer import SftTrainer, process_group

    with process_group():
        return describe(SftTrainer(config), request)


def describe(trainer: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The trainer's optimizer, schedule, adapters and batches."""
    from verl_ext.sft.trainer import loss_at

    engine, config = trainer.engine, trainer.config
    (group,) = engine.optimizer.param_groups
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    frozen = {p.dtype for p in engine.module.parameters() if not p.requires_grad}
    (adapter,) = engine.module.peft_config.values()
    total, frequency = trainer.total_training_steps, trainer.save_freq
    saved = [step for step in range(1, total + 1) if step == total or step % frequency == 0]
    return {
        "optimizer": type(engine.optimizer).__name__,
        "betas": list(group["betas"]),
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "clip_grad": engine.optimizer_config.clip_grad,
        "learning_rates": [engine.lr_scheduler_step() for _ in range(total)],
        "epochs": config.trainer.total_epochs,
        "rows": len(trainer.train_dataset),
        "batch_size": trainer.global_batch_size,
        "max_length": config.data.max_length,
        "truncation": config.data.truncation,
        "renderer": config.data.renderer,
        "save_every": frequency,
        "saves": saved,
        "lora_rank": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "lora_init": str(adapter.init_lora_weights),
        "lora_seed": config.sft.seed,
        "adapted": adapted_blocks(trained),
        "dtypes": {"base": str(*frozen), "adapters": str(*{p.dtype for p in trained.values()})},
        "lora_parameters": lora_parameters(request, adapter),
        "loss_at_one_nat": loss_at(trainer, -1.0),  # the batch size for a sum, 1 for a mean
        "first_batch": first_batch(trainer),
        "batches": all_batches(trainer),
    }


def adapted_blocks(trained: dict[str, Any]) -> dict[str, bool | str]:
    """Which of Tinker's groups have an adapter on every one of their layers' kinds."""
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    unknown = layers - set().union(*ADAPTED_BLOCKS.values())
    assert not unknown, f"adapters on {unknown}"
    return {
        block: True if kinds <= layers else f"only {sorted(kinds & layers)}" if kinds & layers else False
        for block, kinds in ADAPTED_BLOCKS.items()
    }


def lora_parameters(request: dict[str, Any], adapter: Any) -> int:
    """Trainable parameters that our adapter has on the model whose size Tinker knows, counted on the meta device."""
    from transformers import Qwen3Config

    from verl_ext.student.export import count_parameters

    model_config = Qwen3Config.from_json_file(request["lora_model_config"])
    return count_parameters(model_config, adapter.r, sorted(adapter.target_modules))


def first_batch(trainer: Any) -> list[dict[str, Any]]:
    """What the loader hands to the first step, row by row."""
    batch = next(iter(trainer.train_dataloader))
    rows = zip(batch["input_ids"].unbind(), batch["loss_mask"].unbind(), strict=True)
    return [{"ids": ids.tolist(), "weights": weights.tolist()} for ids, weights in rows]


def all_batches(trainer: Any) -> list[str]:
    """Fingerprint of every batch of every epoch, in order."""
    digests = []
    for epoch in range(trainer.config.trainer.total_epochs):
        trainer.train_sampler.set_epoch(epoch)
        for rows in trainer.train_sampler:
            examples = [trainer.train_dataset[row] for row in rows]
            digests.append(
                digest([{"ids": e["input_ids"].tolist(), "weights": e["loss_mask"].tolist()} for e in examples])
            )
    return digests


def labelling(request: dict[str, Any]) -> dict[str, Any]:
    """What `recipe.create_data prompt=tinker teacher=...` would send, and the lines that it would write."""
    tokenizer = load_tokenizer(request["tokenizer"])
    sampling = SamplingConfig()
    template = tinker_prompt()
    prompts, lines = [], []
    for sentence in data.tinker_sentences():
        row = make_row(sentence, template, "train", "")
        prompt = render_chat(tokenizer, row["teacher_messages"], sampling.template_kwargs)
        prompts.append(prompt)
        answer = request["answers"][pick(prompt, len(request["answers"]))]
        reading = read_label(answer, "final_answer", "tinker", LABELS)
        if reading.label:
            lines.append(to_jsonl([conversation(row, reading.label)], columns=("messages",)).decode())
    stop = [tokenizer.convert_tokens_to_ids(text) for text in sampling.stop]
    return {
        "sampling": asdict(sampling) | {"stop": stop},
        "prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(json.dumps(sorted(prompts)).encode()).hexdigest(),
        "lines": len(lines),
        "lines_sha256": hashlib.sha256("\n".join(sorted(line.rstrip("\n") for line in lines)).encode()).hexdigest(),
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    notes = {"create_data": labelling(request), "train": training(request)}
    Path(sys.argv[2]).write_text(json.dumps(notes), encoding="utf-8")


if __name__ == "__main__":
    main()
