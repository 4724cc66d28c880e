"""Ours beside its two neighbours: TRL's SDFT trainer and verl 0.9.1's own distillation, in turn on one machine.

    TRL_PYTHON=.venv-trl/bin/python python -m benchmarks.vs_peers --json vs_peers.json
    TRL_PYTHON=.venv-trl/bin/python python -m benchmarks.vs_peers --task real --steps 24

The demo's task of one label, 32 prompts x 4 samples a step, or SmolLM2 and the rows of `compare run task=real`, 8 x 4.
Seconds and samples until 0.9 x the teacher's held-out accuracy (from the launch, validations left out), seconds a
step, and the most memory that all processes of a run held at once (pages that they share counted once). verl's teacher
reads what the student reads: a prompt of its own cannot be given to it, so on a task whose teacher is the base with a
prompt its signal is zero (`signal`, mean |reverse KL| of the first step), and its seconds are those of a teacher who
reads some 60 tokens less.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import launch, report
from benchmarks.method_ablation import ENOUGH, of_step, teacher_accuracy
from benchmarks.vs_trl import ALL_CORES, WARM_UP, Pair, between, run_ours, run_trl, samples_to, tiny

REAL = Path("configs/comparison/task/real.yaml")
TEACHER = "distillation.teacher_models.teacher_model"
BUILT_IN = (
    *("distillation.enabled=true", "distillation.n_gpus_per_node=1", "distillation.nnodes=1"),
    *(f"{TEACHER}.key=default", f"{TEACHER}.num_replicas=1"),
    *(f"{TEACHER}.inference.tensor_model_parallel_size=1", f"+{TEACHER}.inference.enable_sleep_mode=false"),
    *(f"{TEACHER}.inference.free_cache_engine=false", f"{TEACHER}.inference.max_model_len=512"),
    *("distillation.distillation_loss.loss_mode=k1", "distillation.distillation_loss.use_policy_gradient=true"),
    "distillation.distillation_loss.use_task_rewards=false",
    # verl sends a tensor as a whole: SmolLM2's embedding has 113 MB.
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=256",
    # A second logical slot, for the teacher.
    *("ray_kwargs.ray_init.num_gpus=2", "ray_kwargs.ray_init.runtime_env.env_vars.CUDA_VISIBLE_DEVICES='0,1'"),
)
"""verl's own distillation with its policy gradient of the sampled token's reverse KL, which is our default."""
LOOK_S = 0.5
UNTAUGHT_STEPS = 8
OF_A_BENCHMARK = ("platform", "trainer.total_training_steps", "trainer.save_freq", "trainer.test_freq")
"""What `launch` says itself, or the systems here do."""


@dataclass(frozen=True)
class Task:
    """A pair and its rows, and the learning rate of every system."""

    pair: Pair
    rate: float
    teacher: float
    """Held-out accuracy of the prompted base."""

    @property
    def target(self) -> float:
        return ENOUGH * self.teacher

    @property
    def a_step(self) -> int:
        """Samples."""
        return self.pair.prompts * self.pair.n


def classification(out: Path) -> Task:
    return Task(tiny(), 1e-3, teacher_accuracy(out))


def real(out: Path) -> Task:
    """Rows, model and headroom as `compare` makes them, and its settings of a run."""
    folder, task = out / "real", OmegaConf.to_container(OmegaConf.load(REAL))
    assert isinstance(task, dict)
    words = ["recipe.compare", "headroom", "task=real", f"out={folder}"]
    subprocess.run([sys.executable, "-m", *words], check=True)
    found = json.loads((folder / "headroom/eval.json").read_text())
    model, data = folder / "base", folder / "data"
    overrides = (
        *(f"student.path={model}", f"data.train_files={data}/train.parquet", f"data.val_files={data}/heldout.parquet"),
        *(word for word in (*task["on_policy"], *task["serve"]) if word.partition("=")[0] not in OF_A_BENCHMARK),
        ALL_CORES,
    )
    return Task(Pair("real", 8, 4, 12, 32, model, data, overrides), 1e-4, found["teacher"]["accuracy"])


TASKS = {"classification": classification, "real": real}


@dataclass
class Arm:
    """What a system showed; of several rounds."""

    system: str
    step_seconds: list[float] = field(default_factory=list)
    peak_gib: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    """Until the target, infinite where it is not reached."""
    seconds: list[float] = field(default_factory=list)
    """The same, from the launch."""
    signal: list[float] = field(default_factory=list)
    """Nats a token at the first step."""


class PeakMemory:
    """Of everything below this process, in GiB: `with PeakMemory() as peak: ...; peak.gib`."""

    def __init__(self) -> None:
        self.gib, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            held = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    held += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
                    continue
            self.gib = max(self.gib, held / 2**30)


def note(arm: Arm, times: list[float], accuracies: list[float], launched: float, task: Task) -> None:
    """Of a run: unix time of each step's end, without what validations took, and the held-out accuracy after each."""
    arm.step_seconds += between(times)
    samples = samples_to(task.target, accuracies, task.a_step)
    arm.samples.append(samples)
    arm.seconds.append(samples if samples == float("inf") else times[int(samples / task.a_step) - 1] - launched)


def ours(updates: int) -> Callable[[Arm, Path, int, Task], None]:
    """`updates` a step."""

    def run(arm: Arm, out: Path, steps: int, task: Task) -> None:
        settings = (
            *("trainer.test_freq=1", "data.val_batch_size=300", f"actor_rollout_ref.actor.optim.lr={task.rate}"),
            f"actor_rollout_ref.actor.ppo_mini_batch_size={task.pair.prompts // updates}",
        )
        found = run_ours(task.pair, out, steps, *settings)
        spent, times = 0.0, []
        for row in found.rows:
            spent += row.get("timing_s/testing", 0.0)
            times.append(row["training/unix_time"] - spent)
        arm.signal.append(abs(found.rows[0]["teacher_kl"]))
        note(arm, times, [float(of_step(row)["accuracy"] or 0.0) for row in found.rows], found.launched, task)

    return run


def trl(arm: Arm, out: Path, steps: int, task: Task) -> None:
    launched = time.time()
    rows = run_trl(task.pair, out, steps, task.rate, 0, heldout=True)
    note(arm, [row["unix_time"] for row in rows], [row["accuracy"] for row in rows], launched, task)


def built_in(arm: Arm, out: Path, steps: int, task: Task) -> None:
    """verl's own; some steps are enough, as it learns nothing."""
    words = (*task.pair.overrides, *BUILT_IN, f"{TEACHER}.model_path={task.pair.model}")
    run = launch("benchmarks.arms.stock_verl", out, min(steps, UNTAUGHT_STEPS), *words)
    arm.step_seconds += [row["timing_s/step"] for row in run.rows[WARM_UP:]]
    arm.signal.append(run.rows[0]["actor/distillation/abs_loss"])
    arm.samples.append(float("inf"))
    arm.seconds.append(float("inf"))


SYSTEMS = {"ours": ours(1), "ours, 4 updates a step": ours(4), "TRL": trl, "verl's own": built_in}


def folder_of(out: Path, system: str, number: int) -> Path:
    """Of a run; Hydra takes no quote in a path."""
    return out / f"{re.sub(r'[^a-zA-Z0-9]+', '-', system)}-{number}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="classification", help="what is learned")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each system, in turn")
    parser.add_argument("--steps", type=int, default=12, help=f"of a run, of which {WARM_UP} warm up")
    parser.add_argument("--systems", default=";".join(SYSTEMS), help=f"of {'; '.join(SYSTEMS)}")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: a new temporary one")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    chosen = options.systems.split(";")
    if unknown := [name for name in chosen if name not in SYSTEMS]:
        parser.error(f"--systems: no {unknown[0]}; there are {'; '.join(SYSTEMS)}")
    out = options.out or Path(tempfile.mkdtemp(prefix="benchmark-"))
    out.mkdir(parents=True, exist_ok=True)
    task = TASKS[options.task](out)
    arms = {name: Arm(name) for name in chosen}
    for number in range(options.rounds):
        for name, arm in arms.items():
            folder = folder_of(out, name, number)
            with PeakMemory() as peak:
                SYSTEMS[name](arm, folder, options.steps, task)
            arm.peak_gib.append(peak.gib)
    show(list(arms.values()))
    report([asdict(arm) for arm in arms.values()], bars(arms), options.json)


def show(arms: list[Arm]) -> None:
    table = Table(title=f"to {ENOUGH} x the teacher's accuracy; medians of the rounds")
    for column in ("system", "samples", "seconds", "seconds a step", "peak GiB", "signal, nats a token"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for arm in arms:
        values = (arm.samples, arm.seconds, arm.step_seconds, arm.peak_gib, arm.signal)
        table.add_row(arm.system, *(f"{statistics.median(each):.3g}" if each else "-" for each in values))
    Console(width=120).print(table)


def bars(arms: dict[str, Arm]) -> list[tuple[str, float, float]]:
    """Ours over each neighbour's, the better of our two; at most 1."""
    mine = [arm for name, arm in arms.items() if name.startswith("ours")]
    found = []
    for name, arm in arms.items():
        if arm in mine or not mine:
            continue
        for what in ("samples", "seconds", "step_seconds", "peak_gib"):
            theirs = statistics.median(getattr(arm, what))
            if theirs != float("inf"):
                best = min(statistics.median(getattr(each, what)) for each in mine)
                found.append((f"{what}_over_{name.replace(' ', '_')}", best / theirs, 1.0))
    return found


if __name__ == "__main__":
    sys.exit(main())
