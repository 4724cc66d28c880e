"""What a person watches: one line a stage, a progress bar over the steps, and a table at the end."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from verl_ext.run.files import write_json
from verl_ext.run.metrics import MetricsTail, read_place
from verl_ext.run.next_command import evaluation_of, report_of
from verl_ext.run.terminal import Terminal

STEP = "global_step_"
SILENCE_S = 10.0  # after which a log file gets a line of where the run is
PACE_STEPS = 20  # the last ones, whose median says how long the rest takes


class RunConsole:
    """Follows a run's `metrics.jsonl` and `place.json`, which the trainer's process writes."""

    def __init__(self, run_dir: Path, started: float) -> None:
        """`started`: `time.perf_counter()` at launch, so that stage times count from what the user typed."""
        self.run_dir = run_dir
        self.started = started
        self.console = Terminal()
        self.metrics = MetricsTail(run_dir / "metrics.jsonl")
        self.steps = 0
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.place = read_place(run_dir)
        self.seconds: dict[str, float] = {}
        self.last_progress = self.last_line = started
        self.step_seconds: list[float] = []
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("training", total=None, metrics="starting")

    def __enter__(self) -> "RunConsole":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stage(self, text: str) -> None:
        """One line: what just became true, and when."""
        self.last_line = time.perf_counter()
        self.console.print(f"[{self.last_line - self.started:6.1f} s] {text}", highlight=False, soft_wrap=True)

    def seconds_since_progress(self) -> float:
        """Seconds since the last finished step, or since launch."""
        return time.perf_counter() - self.last_progress

    def update(self) -> None:
        """Advance the bar to the last step written, and say where the run is now."""
        if new := self.metrics.new_rows():
            self._count(new)
        place = read_place(self.run_dir)
        if place != self.place and not self.steps and not self.console.is_terminal:
            self.stage(place)
        self.place = place
        if not self.console.is_terminal and time.perf_counter() - self.last_line > SILENCE_S:
            self.stage(f"... {place or 'starting'}")
        done = f"{_headline(self.last)}  " if self.last else ""
        self.progress.update(self.task, metrics=f"{done}({place or 'starting'})")

    def _count(self, new: list[dict[str, float]]) -> None:
        self.last_progress = time.perf_counter()
        if not self.steps:
            self.first = new[0]
            self.seconds["startup"] = time.perf_counter() - self.started - self.first["timing_s/step"]
            if self.first["step"] > 1:
                self.stage(f"resumed after step {self.first['step'] - 1:.0f}")
            self.stage("the first step is done")
        self.steps, self.last = self.steps + len(new), new[-1]
        for row in new:
            self.step_seconds.append(row["timing_s/step"])
            if not self.console.is_terminal:  # a log file shows no bar
                self.stage(
                    f"step {row['step']:.0f}/{row['training/total_steps']:.0f}  {_headline(row)}{self._left(row)}"
                )
        total, step = self.last["training/total_steps"], self.last["step"]
        self.progress.update(self.task, total=total, completed=step)

    def _left(self, row: dict[str, float]) -> str:
        """About how long the steps behind this one will take, at the pace of the last ones; the first is no measure."""
        steps = row["training/total_steps"] - row["step"]
        if steps < 1 or len(self.step_seconds) < 2:
            return ""
        pace = sorted(self.step_seconds[max(1, len(self.step_seconds) - PACE_STEPS) :])
        return f"  ~{timedelta(seconds=round(steps * pace[len(pace) // 2]))} left"

    def finish(self, evaluation: str | None) -> None:
        """Print the summary, write `run.json` (seconds of start-up and training), name the next commands.

        `evaluation`: the command that evaluates the student, if there is one.
        """
        if not self.steps:
            self.stage("nothing left to train: the run was complete; delete the run directory to start over")
            return
        total = time.perf_counter() - self.started
        self.seconds["train"] = total - self.seconds["startup"]
        write_json(self.run_dir / "run.json", {"steps": self.steps, "seconds": self.seconds})
        first, last = self.first, self.last
        table = Table(title=f"run {self.run_dir.name}: {self.steps} steps in {total:.0f} s")
        for column in ("", "first step", "last step"):
            table.add_column(column, justify="left" if not column else "right")
        for label, key in (
            ("teacher_kl (nats/token)", "teacher_kl"),
            ("reward", "critic/rewards/mean"),
            ("response length (tokens)", "response_length/mean"),
            ("gradient norm", "actor/grad_norm"),
            ("seconds a step", "timing_s/step"),
            ("  sampling and scoring", "timing_s/gen"),
            ("  of it with the teacher busy", "teacher/seconds"),
            ("  update", "timing_s/update_actor"),
            ("  weight sync", "timing_s/update_weights"),
        ):
            if key in first and key in last:
                table.add_row(label, f"{first[key]:.4g}", f"{last[key]:.4g}")
        self.console.print(table)
        step, total = round(last["step"]), round(last["training/total_steps"])
        if step < total:
            self.stage(f"the run ended after step {step} of {total}")
        saved = step_of_student(self.run_dir)
        if saved is None:
            self.stage("no student: no checkpoint was saved (trainer.save_freq)")
            return
        adapter = f", adapter: {self.run_dir}/adapter (PEFT)" if (self.run_dir / "adapter").is_dir() else ""
        of = f" of step {saved}, not of the last one" if saved != step else ""
        for line in (
            f"student{of}: {self.run_dir}/student (Hugging Face format, with a model card){adapter}; next:",
            *([] if evaluation is None else [f"  {evaluation}"]),
            f"  {report_of(self.run_dir)}",
            f"  vllm serve {self.run_dir}/student",
        ):
            self.console.print(line, highlight=False, soft_wrap=True)


def step_of_student(run_dir: Path) -> int | None:
    """The step whose checkpoint `run_dir/student` leads to; None where there is no student."""
    folder = (run_dir / "student").resolve()
    steps = [int(part.removeprefix(STEP)) for part in folder.parts if part.startswith(STEP)]
    return steps[-1] if steps and folder.is_dir() else None


def _headline(row: dict[str, float]) -> str:
    return (
        f"teacher_kl {row['teacher_kl']:+.4f}  reward {row['critic/rewards/mean']:.3f}  {row['timing_s/step']:.1f} s"
        + _wrong(row)
    )


def _wrong(row: dict[str, float]) -> str:
    """What a step lost, in words."""
    skipped, failed = row.get("updates/skipped", 0), row.get("samples/failed", 0)
    words = [f"{skipped:.0f} updates skipped (gradient not finite)"] if skipped else []
    words += [f"{failed:.0f} samples failed"] if failed else []
    return f"  {', '.join(words)}" if words else ""


LINES = 20
"""Lines that a run's progress takes on the console, about."""


class SftConsole:
    """What a person sees of a run: one line a stage, about LINES lines of training."""

    def __init__(self) -> None:
        # A copy of the console: verl's output goes to a file while this writes.
        self.console = Terminal(file=os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1))
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
        for command in filter(None, (evaluation_of(config), report_of(config.run_dir))):
            self.console.print(f"  {command}", highlight=False, soft_wrap=True)
