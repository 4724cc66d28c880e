"""Refuse an SFT run that cannot work, in one line, before a process group or a model exists.

Each check raises ValueError naming the key and the fix. Several stand for a silent fault of verl's SFT trainer.
"""

import json
import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.run.models import check_model, load_tokenizer
from verl_ext.run.settings import settings_of
from verl_ext.sft.config import SftConfig
from verl_ext.sft.dataset import ConversationDataset, DataReport
from verl_ext.sft.engine import linear_multiplier
from verl_ext.sft.renderer import check_template, get_renderer

SCHEDULES = ("linear", "constant", "cosine")


def check_run(config: DictConfig, ranks: int) -> DataReport:
    """Every check; what the training rows hold."""
    sft = settings_of(config.sft, SftConfig)
    check_optimizer(config.optim)
    check_lora(config.model, sft)
    if config.engine.strategy != "fsdp2":
        raise ValueError(f"engine.strategy={config.engine.strategy} is not supported here; leave it at fsdp2")
    check_frequencies(config.trainer)
    check_resume(Path(config.trainer.default_local_dir), config.trainer.resume_mode, ranks)
    check_model("student.path", config.student.path)
    tokenizer = load_tokenizer(config.student.path)
    renderer = get_renderer(sft.renderer, tokenizer)
    dataset = ConversationDataset(
        _plain(config.data.train_files), tokenizer, config.data, max_samples=config.data.train_max_samples
    )
    check_template(renderer, [{"role": "user", "content": "x"}])
    check_batch(config.data, dataset.report, ranks, config.engine.ulysses_sequence_parallel_size)
    check_steps(config, len(dataset))
    if config.data.val_files:
        held_out = ConversationDataset(
            _plain(config.data.val_files), tokenizer, config.data, max_samples=config.data.val_max_samples
        )
        if len(held_out) < config.data.train_batch_size:
            raise ValueError(
                f"data.val_files={config.data.val_files}: {len(held_out)} rows make no batch of "
                f"data.train_batch_size={config.data.train_batch_size}, and verl's validation loss would be NaN; "
                "give more rows, or data.val_files=null"
            )
    return dataset.report


def _plain(files: Any) -> Any:
    return OmegaConf.to_container(files) if OmegaConf.is_config(files) else files


def check_optimizer(optim: Any) -> None:
    if not optim.lr > 0:
        raise ValueError(f"optim.lr={optim.lr} must be > 0")
    if not optim.clip_grad > 0 or math.isnan(optim.clip_grad):
        raise ValueError(
            f"optim.clip_grad={optim.clip_grad} would zero every gradient; no clipping is optim.clip_grad=.inf"
        )
    if optim.lr_scheduler_type not in SCHEDULES:
        raise ValueError(f"optim.lr_scheduler_type={optim.lr_scheduler_type} must be one of {', '.join(SCHEDULES)}")


def check_lora(model: Any, sft: SftConfig) -> None:
    if model.lora_rank < 0:
        raise ValueError(f"model.lora_rank={model.lora_rank} must be >= 0; 0 trains every weight")
    if model.lora_rank > 0 and not model.lora_alpha > 0:
        raise ValueError(f"model.lora_alpha={model.lora_alpha} leaves the adapters without effect; set it above 0")
    if model.lora_rank == 0 and sft.adapter_dtype != "base":
        raise ValueError(f"sft.adapter_dtype={sft.adapter_dtype} has no adapter to act on; set model.lora_rank")
    if model.lora.rank:
        raise ValueError(
            f"model.lora.rank={model.lora.rank} is Megatron's and read by nothing here; set model.lora_rank"
        )


def check_frequencies(trainer: Any) -> None:
    for key in ("save_freq", "test_freq"):
        value = trainer[key]
        if value != "after_each_epoch" and (not isinstance(value, int) or value < -1 or value == 0):
            raise ValueError(
                f"trainer.{key}={value}: verl divides by it; give a number of steps, after_each_epoch, or -1 for never"
            )


def check_resume(folder: Path, mode: str, ranks: int) -> None:
    """A checkpoint is in as many shards as it had ranks, and is read by as many."""
    tracker = folder / "latest_checkpointed_iteration.txt"
    if mode == "disable" or not tracker.is_file():
        return
    described = folder / f"global_step_{tracker.read_text().strip()}" / "fsdp_config.json"
    if not described.is_file():
        raise ValueError(
            f"{tracker} names a checkpoint that is not there; delete {folder} or set trainer.resume_mode=disable"
        )
    saved = json.loads(described.read_text())["world_size"]
    if saved != ranks:
        raise ValueError(
            f"{described.parent} was written by {saved} ranks and this run has {ranks}; take torchrun "
            f"--nproc-per-node {saved}, another run_dir, or trainer.resume_mode=disable"
        )


def check_batch(data: Any, report: DataReport, ranks: int, ranks_per_replica: int) -> None:
    size, replicas = data.train_batch_size, ranks // ranks_per_replica
    if size < 1 or size > report.rows:
        raise ValueError(f"data.train_batch_size={size} must be from 1 to the {report.rows} rows of data.train_files")
    if size % replicas:
        raise ValueError(f"data.train_batch_size={size} is not divisible by the {replicas} data-parallel ranks")
    share, micro = size // replicas, data.micro_batch_size_per_gpu
    if data.use_dynamic_bsz:
        if report.longest > data.max_token_len_per_gpu * ranks_per_replica:
            raise ValueError(
                f"data.max_token_len_per_gpu={data.max_token_len_per_gpu} is less than the longest row, "
                f"{report.longest} tokens; raise it, or lower data.max_length to cut rows"
            )
    elif share % micro:
        raise ValueError(
            f"data.micro_batch_size_per_gpu={micro} does not divide the {share} rows that each rank has of a batch"
        )


def check_steps(config: DictConfig, rows: int) -> None:
    total = config.trainer.total_training_steps
    available = rows // config.data.train_batch_size * config.trainer.total_epochs
    if available < 1:
        raise ValueError(f"trainer.total_epochs={config.trainer.total_epochs} must be at least 1")
    if total is not None and not 1 <= total <= available:
        raise ValueError(
            f"trainer.total_training_steps={total}: {config.trainer.total_epochs} epochs have {available} steps; "
            "raise trainer.total_epochs, or verl would stop early and save nothing"
        )
    if config.optim.lr_scheduler_type == "linear":
        linear_multiplier(0, available if total is None else total, config.optim.lr_warmup_steps)
