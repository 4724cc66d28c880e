"""Train a student on a teacher's labels, without the prompt that the teacher had (SFT prompt distillation).

    torchrun --nproc-per-node 8 -m recipe.sft student.path=MODEL data.train_files=conversations.jsonl
    python -m recipe.sft sft_platform=cpu sft_task=demo student.path=MODEL data.train_files=conversations.jsonl

The second form is one process. `--help` and `--cfg job` show every setting; any can be overridden on the command line.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from verl_ext import preflight
from verl_ext.config import check_given, mapping_of
from verl_ext.model_card import write_cards
from verl_ext.verbs import prepare_training_configs

if TYPE_CHECKING:
    from verl_ext.sft.dataset import DataReport


LINES = 20
"""Lines that a run's progress takes on the console, about."""
SILENCE_S = 20
"""Seconds that the other ranks wait before they complain too: torchrun ends them when rank 0 has said it."""


def prepare_environment(environment: dict[str, Any]) -> tuple[int, int]:
    """Set what verl reads when it is imported; return this process' rank and the number of ranks.

    Started without torchrun, this is the only rank.
    """
    for key, value in environment.items():
        os.environ.setdefault(key, str(value))
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        single = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        os.environ.update(single | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def output_into(file: Path) -> Iterator[None]:
    """What verl, torch and gloo print goes to a file, so that the console stays readable.

    File descriptors are redirected, since gloo writes to them directly. An error still reaches the console.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {stream: os.dup(stream.fileno()) for stream in (sys.stdout, sys.stderr)}
    try:
        with file.open("a") as log:
            for stream in kept:
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        yield
    finally:
        for stream, descriptor in kept.items():
            stream.flush()
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)


class Progress:
    """What a person sees of a run: one line a stage, about LINES lines of training."""

    def __init__(self) -> None:
        # A copy of the console: verl's output goes to a file while this writes.
        self.console = Console(file=os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1))
        self.started = time.perf_counter()

    def line(self, text: str) -> None:
        self.console.print(
            f"[{time.perf_counter() - self.started:6.1f} s] {text}", highlight=False, soft_wrap=True, markup=False
        )

    def ready(self, trainer: Any) -> None:
        parameters = [parameter for parameter in trainer.engine.module.parameters() if parameter.requires_grad]
        at = f" from step {trainer.resume_global_step}" if trainer.resume_global_step else ""
        self.line(
            f"training {sum(p.numel() for p in parameters):,} parameters, {trainer.total_training_steps} steps{at}"
        )

    def step(self, step: int, total: int, metrics: dict[str, float]) -> None:
        if step in (1, total) or step % max(1, total // LINES) == 0:
            self.line(
                f"step {step}/{total}  loss {metrics['train/loss']:.4f}  lr {metrics['train/lr']:.3g}  "
                f"grad {metrics['train/grad_norm']:.3g}  {metrics['perf/tokens_per_s']:,.0f} tokens/s"
            )

    def finish(self, config: DictConfig, trained: bool) -> None:
        if not trained:
            self.line("nothing left to train: the run was complete; delete the run directory to start over")
        adapter = f", adapter: {config.run_dir}/adapter (PEFT)" if config.model.lora_rank else ""
        self.line(f"student: {config.run_dir}/student (Hugging Face format, with a model card){adapter}; next:")
        self.console.print(
            f"  python -m recipe.evaluate data=HELDOUT.parquet student={config.run_dir}/student",
            highlight=False,
            soft_wrap=True,
        )


def check(config: DictConfig, ranks: int) -> "DataReport":
    """Refuse a run that cannot work. Raises ValueError naming the key and the fix."""
    from verl_ext.sft.checks import check_run

    return check_run(config, ranks)


@hydra.main(version_base=None, config_path="../configs", config_name="sft")
def main(config: DictConfig) -> None:
    try:
        check_given(config, "student.path", "data.train_files")
    except ValueError as error:
        sys.exit(f"error: {error}")
    config.run_dir = str(Path(config.run_dir).resolve())
    rank, ranks = prepare_environment(mapping_of(config.environment))
    progress = Progress()
    try:
        report = check(config, ranks)
    except ValueError as error:
        if rank:
            time.sleep(SILENCE_S)
        sys.exit(f"error: {error}")
    if rank == 0:
        preflight.save_resolved_config(OmegaConf.to_yaml(config, resolve=True), config.run_dir)
        progress.line(report.as_line())
    try:
        with output_into(Path(config.run_dir) / "logs" / f"rank-{rank}.log"):
            from verl_ext.sft.trainer import train

            trained = train(config, progress.ready, progress.step)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command resumes from the last checkpoint in {config.run_dir}")
    if rank == 0:
        write_cards(Path(config.run_dir))
        progress.finish(config, trained)


if __name__ == "__main__":
    prepare_training_configs()
    main()
