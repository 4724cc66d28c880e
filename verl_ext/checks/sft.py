"""The SFT trainer's checks: several stand for a silent fault of verl's.

Each function is a check of `verl_ext.checks.registry`. It raises ValueError naming the key and the fix; else it returns
what it has seen. Torch is imported when the first row is read, verl never.
"""

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.context import Context
from verl_ext.checks.values import check_gpus
from verl_ext.run.resume import check_ranks, resume_of
from verl_ext.run.settings import settings_of
from verl_ext.sft.config import SftConfig
from verl_ext.sft.renderer import Qwen3InstructRenderer, check_template, get_renderer
from verl_ext.sft.schedule import linear_multiplier, warmup_steps

if TYPE_CHECKING:
    from verl_ext.sft.dataset import ConversationDataset


class SftContext(Context):
    """Of an SFT run."""

    def __init__(self, config: DictConfig, ranks: int) -> None:
        """`ranks`: processes that train."""
        required = ("student.path", "data.train_files")
        super().__init__(models=lambda: {"student.path": config.student.path}, config=config, required=required)
        self.ranks = ranks

    @cached_property
    def sft(self) -> SftConfig:
        return settings_of(self.config.sft, SftConfig)

    @cached_property
    def renderer(self) -> Qwen3InstructRenderer:
        return get_renderer(self.sft.renderer, self.student_tokenizer)

    @cached_property
    def dataset(self) -> "ConversationDataset":
        return self.read(self.config.data.train_files, self.config.data.train_max_samples)

    def read(self, files: Any, max_samples: int) -> "ConversationDataset":
        from verl_ext.sft.dataset import ConversationDataset

        plain: Any = OmegaConf.to_container(files) if OmegaConf.is_config(files) else files
        return ConversationDataset(plain, self.student_tokenizer, self.config.data, max_samples=max_samples)


def settings(context: SftContext) -> str:
    """Our own settings are in range."""
    return f"renderer {context.sft.renderer}"


def renderer(context: SftContext) -> str:
    """The renderer is exact for this student."""
    return type(context.renderer).__name__


def conversations(context: SftContext) -> str:
    """Every row can be rendered exactly, with a token to train on."""
    return context.dataset.report.as_line()


def template(context: SftContext) -> str:
    """The student's own chat template asks with the tokens that it is trained after."""
    check_template(context.renderer, [{"role": "user", "content": "x"}])
    return "asks as it is trained"


def heldout(context: SftContext) -> str:
    """The held-out rows fill a batch."""
    data = context.config.data
    if not data.val_files:
        return "none"
    count = len(context.read(data.val_files, data.val_max_samples))
    if count < data.train_batch_size:
        raise ValueError(
            f"data.val_files={data.val_files}: {count} rows make no batch of "
            f"data.train_batch_size={data.train_batch_size}, and verl's validation loss would be NaN; "
            "give more rows, or data.val_files=null"
        )
    return f"{count} rows"


def lora(context: SftContext) -> str:
    """Adapters that act, or none."""
    model, sft = context.config.model, context.sft
    if model.lora_rank == 0 and sft.adapter_dtype != "base":
        raise ValueError(f"sft.adapter_dtype={sft.adapter_dtype} has no adapter to act on; set model.lora_rank")
    if model.lora.rank:
        raise ValueError(
            f"model.lora.rank={model.lora.rank} is Megatron's and read by nothing here; set model.lora_rank"
        )
    return f"rank {model.lora_rank}"


def processes(context: SftContext) -> str:
    """A GPU for each process of this machine."""
    if context.config.trainer.device == "cpu":
        return "on the CPU"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(context.ranks)))
    check_gpus(f"platform=cuda with {here} processes (--nproc)", here)
    return f"{here} GPUs"


def resume(context: SftContext) -> str:
    """The checkpoint that the run goes on from is what was written, by as many ranks as will read it."""
    if (found := resume_of(context.config.trainer)) is None:
        return "none to go on from"
    check_ranks(found.folder, context.ranks, "--nproc")
    return f"{found.folder} is whole"


def batch(context: SftContext) -> str:
    """A batch divides over ranks and micro-batches."""
    data, report = context.config.data, context.dataset.report
    ranks_per_replica = context.config.engine.ulysses_sequence_parallel_size
    if context.ranks % ranks_per_replica:
        raise ValueError(
            f"engine.ulysses_sequence_parallel_size={ranks_per_replica} does not divide the {context.ranks} processes; "
            "lower it, or start more (--nproc)"
        )
    size, replicas = data.train_batch_size, context.ranks // ranks_per_replica
    if size < 1 or size > report.rows:
        raise ValueError(f"data.train_batch_size={size} must be from 1 to the {report.rows} rows of data.train_files")
    if size % replicas:
        raise ValueError(f"data.train_batch_size={size} must be a multiple of the {replicas} data-parallel ranks")
    share, micro = size // replicas, data.micro_batch_size_per_gpu
    if data.use_dynamic_bsz:
        if report.longest > data.max_token_len_per_gpu * ranks_per_replica:
            raise ValueError(
                f"data.max_token_len_per_gpu={data.max_token_len_per_gpu} is less than the longest row, "
                f"{report.longest} tokens; raise it, or lower data.max_length to cut rows"
            )
    elif share % micro:
        raise ValueError(
            f"data.micro_batch_size_per_gpu={micro} must divide the {share} rows that each rank has of a batch"
        )
    return f"{share} rows a rank"


def steps(context: SftContext) -> str:
    """There are as many steps as are asked for, and some to decay over."""
    config = context.config
    total = config.trainer.total_training_steps
    available = len(context.dataset) // config.data.train_batch_size * config.trainer.total_epochs
    if available < 1:
        raise ValueError(f"trainer.total_epochs={config.trainer.total_epochs} must be at least 1")
    if total is not None and not 1 <= total <= available:
        raise ValueError(
            f"trainer.total_training_steps={total}: {config.trainer.total_epochs} epochs have {available} steps; "
            "raise trainer.total_epochs, or verl would stop early and save nothing"
        )
    if config.optim.lr_scheduler_type == "linear":
        steps, optim = available if total is None else total, config.optim
        linear_multiplier(0, steps, warmup_steps(optim.lr_warmup_steps, optim.lr_warmup_steps_ratio, steps))
    return f"{available if total is None else total} steps"
