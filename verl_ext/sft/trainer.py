"""verl's SFT trainer with Tinker's batches, and its metrics written where a resumed run goes on."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group
from verl.workers.engine import EngineRegistry

from verl_ext.ledger import ledger
from verl_ext.ledger.entries import SFT, Entry, Flops, Tokens
from verl_ext.ledger.flops import Work, adapters_of, backward, forward, sequence
from verl_ext.ledger.meter import Stopwatch, shape_or_none
from verl_ext.platform import assert_platform
from verl_ext.run.metrics import MetricsFile
from verl_ext.run.stop import Noted, Signalled, noting
from verl_ext.sft.checkpoint import WholeCheckpoints
from verl_ext.sft.engine import SftEngine
from verl_ext.sft.order import ResumingLoader, TinkerBatches
from verl_ext.student.export import export_checkpoint

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called on rank 0 after each step with its number (from 1), the total, and the metrics."""


class SftTrainer(SFTTrainer):
    """verl's trainer; the batches are Tinker's, and each step is reported."""

    def _build_dataloader(self) -> None:
        super()._build_dataloader()
        config = self.config
        self.train_sampler = TinkerBatches(
            len(self.train_dataset),
            config.data.train_batch_size,
            config.sft.seed,
            self.engine.get_data_parallel_rank(),
            self.engine.get_data_parallel_size(),
        )
        self.train_dataloader: DataLoader = ResumingLoader(
            self.train_dataset, self.train_sampler, collate_fn=self.collate_fn, num_workers=config.data.num_workers
        )

    def _build_ckpt_handler(self) -> None:
        super()._build_ckpt_handler()
        self.ckpt_handler: Any = WholeCheckpoints(self.ckpt_handler, Path(self.config.run_dir))

    def report_steps(self, on_step: OnStep, noted: Noted) -> None:
        """Call `on_step` after each step of `fit`, on rank 0; where a signal was noted, save the step and end."""
        train_batch = self.training_client.train_batch
        metrics_file = MetricsFile(Path(self.config.run_dir) / "metrics.jsonl")
        spending = Spending(self.config, self.model_config.hf_config.get_text_config().to_dict())
        step = self.resume_global_step

        def reported(data: Any) -> Any:
            nonlocal step
            watch = Stopwatch(spending.gpus)
            with watch.running():
                output = train_batch(data=data)
            step += 1
            metrics: dict[str, float] = {}
            if self.rank == 0:
                lengths = tu.get(data, "global_token_num")
                metrics = step_metrics(tu.get(output, "metrics"), sum(lengths), watch.seconds)
                spending.stepped(step, watch, lengths, metrics)
                metrics_file.append(step, metrics)  # after its cost: killed between, no row stands without one
                tu.get(output, "metrics").clear()  # verl logs what is in it: the next step's learning rate, sums
                tu.get(output, "metrics").update(metrics)
            self._stop_where_noted(noted, step)  # before a terminal that may have hung up is written to
            if self.rank == 0:
                on_step(step, self.total_training_steps, metrics)
            return output

        self.training_client.train_batch = reported

    def _stop_where_noted(self, noted: Noted, step: int) -> None:
        """Every rank stops after the same step: that in which the first of them has noted a signal."""
        noted.patient = True
        number = torch.tensor(noted.number or 0, device=self.device_name)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        if number.item() and step < self.total_training_steps:
            self.ckpt_handler.save_checkpoint(step)
            raise Signalled(int(number), f"step {step} is saved; the same command resumes after it")


class Spending:
    """Appends what a step spent to the run's ledger."""

    def __init__(self, config: DictConfig, model_config: dict[str, Any]) -> None:
        """`model_config`: the student's, as Hugging Face has it."""
        ranks = torch.distributed.get_world_size()
        on_gpus = config.trainer.device == "cuda"
        self._file = Path(config.run_dir) / ledger.FILE
        self._devices = ranks if on_gpus else config.trainer.nnodes
        self.gpus = ranks if on_gpus and config.trainer.nnodes == 1 else 0
        self._shape = shape_or_none(config.student.path, model_config)
        model = config.model
        self._adapters = self._shape and adapters_of(self._shape, model.lora_rank or 0, model.target_modules)

    def stepped(self, step: int, watch: Stopwatch, lengths: list[int], metrics: dict[str, float]) -> None:
        """A step on sequences of these lengths, tokens, has ended; verl makes the logits of every token."""
        work, flops = sum((sequence(length) for length in lengths), Work()), None
        if self._shape is not None:
            ahead, back = (each(self._shape, work, self._adapters) for each in (forward, backward))
            flops = Flops(train_forward=ahead, train_backward=back)
        entry = Entry(
            phase=SFT,
            step=step,
            unix_time=time.time(),
            seconds=watch.seconds,
            device_seconds=watch.seconds * self._devices,
            devices=self._devices,
            samples=len(lengths),
            tokens=Tokens(trained=sum(lengths)),
            flops=flops,
            peak_bytes=round(metrics["perf/max_memory_allocated_gb"] * 2**30),
            energy_joules=watch.joules,
        )
        ledger.append(self._file, entry)


def step_metrics(theirs: dict[str, Any], tokens: int, seconds: float) -> dict[str, float]:
    """A step's row: the loss is the mean over examples of each one's mean, in nats; lr is the one that was used."""
    return {
        "train/loss": theirs["loss"],
        "train/lr": theirs["lr"],
        "train/grad_norm": theirs["grad_norm"],
        "train/tokens": float(tokens),
        "timing_s/step": seconds,
        "perf/tokens_per_s": tokens / seconds,
        "perf/max_memory_allocated_gb": theirs["perf/max_memory_allocated_gb"],
    }


def loss_at(trainer: SFTTrainer, logprob: float) -> float:
    """Loss of the loader's first batch if every token had the log-prob `logprob` (nats); nothing is computed."""
    batch = next(iter(trainer.train_dataloader))
    tokens = batch["loss_mask"].values().sum()
    rows = [torch.full((len(ids),), logprob) for ids in batch["input_ids"]]
    logprobs = torch.nested.nested_tensor(rows, layout=torch.jagged)
    data = tu.get_tensordict(tensor_dict=batch, non_tensor_dict={"dp_size": 1, "batch_num_tokens": tokens.item()})
    loss, _ = trainer.loss_fn(model_output={"log_probs": logprobs}, data=data)
    return float(loss)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """verl's process group, which its trainer needs from before it is built."""
    initialize_global_process_group()
    try:
        yield
    finally:
        destroy_global_process_group()


def train(config: DictConfig, on_ready: Callable[[SFTTrainer], None], on_step: OnStep) -> bool:
    """Train from the last checkpoint, or from the start, to the end, then export the student (rank 0).

    Returns whether there was anything left to train. `on_ready` gets the built trainer, on rank 0.
    """
    with process_group():
        assert_platform(config.trainer.device)
        torch.manual_seed(config.sft.seed)
        engine = EngineRegistry.get_engine_cls("language_model", config.engine.strategy)
        assert engine is SftEngine, f"verl chose {engine.__name__}: VERL_ENGINE_VENDOR is not set"
        trainer = SftTrainer(config)
        if trainer.rank == 0:
            on_ready(trainer)
        trained = trainer.resume_global_step < trainer.total_training_steps
        with noting() as noted:
            trainer.report_steps(on_step, noted)
            trainer.fit()
        if trainer.rank == 0:
            last = Path(config.trainer.default_local_dir) / f"global_step_{trainer.total_training_steps}"
            export_checkpoint(last, config.student.path, Path(config.run_dir))
        torch.distributed.barrier()
        return trained
