"""The pipeline with stages of stated length: what of a step is lost between them, in each mode and with more replicas.

    python -m benchmarks.timed_pipeline --json timed_pipeline.json

Engines are played (arms/timed_engines.py): a batch takes student, teacher and trainer stated seconds, and nothing of
the processor. All else is real: Ray, verl's loop and load balancer, agent loop, scoring over HTTP, TransferQueue. What
an overlapped run takes beyond the pace of its slowest stage is what the pipeline costs: dispatch, polling, the stop for
the weight sync. On a machine that is busy otherwise it costs more. Model and rows are those of `make demo`.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import DEMO, report
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run import sealed_queue
from verl_ext.run.metrics import read_metrics
from verl_ext.run.ray_session import ray_session
from verl_ext.run.settings import mapping_of
from verl_ext.run.timeline import lanes, length, read_timeline
from verl_ext.sft.environment import prepare_environment

if TYPE_CHECKING:
    from benchmarks.arms.timed_engines import Durations

PROMPTS, N, ANSWER = 16, 4, 8
LONG, SHORT = 4.0, 1.0
"""Seconds of a batch at a slow stage and at a fast one."""
RATIOS = {"1:1:1": (LONG, LONG, LONG), "4:1:1": (LONG, SHORT, SHORT), "1:4:1": (SHORT, LONG, SHORT)}
RATIOS |= {"1:1:4": (SHORT, SHORT, LONG), "1:1:1, heavy tail": (LONG, LONG, LONG)}
MODES = {
    "sync": ("pipeline.mode=sync",),
    "one_step_off": ("pipeline.mode=one_step_off",),
    "stream": ("pipeline.mode=stream", "pipeline.max_staleness=2"),
}
REPLICAS = (1, 2, 4, 8)
SCALED = (8.0, 8.0, 1.0)
"""Seconds of a batch with one replica of student and teacher, where these are multiplied."""
BAR = 1.1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="what the pipeline itself costs, with engines that only take time")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    parser.add_argument("--steps", type=int, default=9, help="training steps of a run")
    parser.add_argument("--only", default="", help="runs whose `CASE, MODE, REPLICAS` holds this")
    parser.add_argument("--demo", type=Path, default=DEMO, help="folder of `make demo`: its data and models")
    parser.add_argument("--out", type=Path, help="folder for the runs; default: a new temporary one")
    parsed = parser.parse_args()
    parsed.out = (parsed.out or Path(tempfile.mkdtemp(prefix="benchmark-"))).absolute()
    return parsed


def composed(options: argparse.Namespace, name: str, urls: list[str], words: tuple[str, ...]) -> DictConfig:
    demo = options.demo
    with initialize_config_dir(str(Path("configs").resolve()), version_base=None):
        config = compose(
            "on_policy_distillation",
            [
                *("platform=cpu", "task=demo", f"run_dir={options.out}/{name}", f"student.path={demo}/models/base"),
                *(f"data.train_files={demo}/data/train.parquet", f"data.val_files={demo}/data/heldout.parquet"),
                *("teacher.mode=external", f"teacher.urls=[{','.join(urls)}]", "teacher.prime=false"),
                *(f"data.train_batch_size={PROMPTS}", f"actor_rollout_ref.rollout.n={N}"),
                f"data.max_response_length={ANSWER}",
                *("trainer.save_freq=-1", "trainer.logger=[]", "pipeline.wait_timeout_s=120"),
                *("method.policy_loss.kind=truncated_importance_sampling", *words),
            ],
        )
    OmegaConf.resolve(config)
    return config


class Session:
    """One Ray, one TransferQueue and all engines, for every run."""

    def __init__(self, options: argparse.Namespace, replicas: int) -> None:
        """`replicas`: of student and of teacher, the most of any run."""
        import ray

        sealed_queue.install()  # as Ray's workers do, of which this process is none
        import transfer_queue as tq

        from benchmarks.arms.timed_engines import TimedStudent, TimedTeacher, start

        self.options = options
        self.students = start(TimedStudent, replicas)
        self.teachers = start(TimedTeacher, replicas)
        self.urls = ray.get([teacher.start.remote() for teacher in self.teachers])
        tq.init(composed(options, "queue", self.urls[:1], ()).transfer_queue)
        self._managers: dict[int, Any] = {}

    def manager(self, replicas: int) -> Any:
        """Agent-loop workers that know so many students and teachers."""
        from verl.workers.rollout.router import get_router_handle

        from benchmarks.arms.timed_engines import Durations, TimedClient
        from verl_ext.trainer.agent_loop import DistillationAgentLoopManager

        if replicas not in self._managers:
            config = composed(self.options, "workers", self.urls[:replicas], ())
            balancer = get_router_handle({str(n): self.students[n] for n in range(replicas)})
            self._managers[replicas] = DistillationAgentLoopManager.create(
                config=config,
                llm_client=TimedClient(config, balancer),
                teacher_client=None,
                reward_loop_worker_handles=None,
            )
            self.train(f"warm_up_{replicas}", "sync", Durations(0.1, 0.1, 0.1), replicas, steps=2)
        return self._managers[replicas]

    def train(self, name: str, mode: str, durations: "Durations", replicas: int, steps: int) -> Path:
        """One run from its first step to its last; its folder."""
        import ray
        from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

        from benchmarks.arms import timed_engines as engines

        manager = self.manager(replicas)
        words = (*MODES[mode], f"trainer.total_training_steps={steps}")
        config = composed(self.options, name, self.urls[:replicas], words)
        folder = Path(config.run_dir)
        folder.mkdir(parents=True)
        samples, busy = PROMPTS * N, self.students[:replicas]
        answer_s = durations.student * engines.SLOTS / samples
        ray.get([student.set.remote(answer_s, durations.heavy) for student in busy])
        ray.get([teacher.set.remote(durations.teacher / samples) for teacher in self.teachers])
        ADV_ESTIMATOR_REGISTRY.pop(config.algorithm.adv_estimator, None)  # a process of verl's has one trainer
        kind: Any = engines.TimedTrainer if mode == "sync" else engines.TimedPipelined
        trainer = kind(config)
        trainer.actor = engines.SleepingActor(durations.training, samples)
        trainer.sync = engines.SleepingSync(busy, durations.sync)
        trainer.init()
        trainer.fit(manager)
        return folder


def result_of(folder: Path, mode: str, durations: "Durations", replicas: int) -> dict[str, Any]:
    """Seconds from the first prompt to the last weight sync, beside the least that they can be, and who was busy.

    At the least one batch is answered and trained on, and all others follow at the pace of the slowest stage.
    """
    timed = read_timeline(folder / "timeline.jsonl")
    steps, spans = len(timed), lanes(timed)
    start = min(timed[0]["stages"][0][1], spans["student"][0][0])
    whole = timed[-1]["stages"][-1][1] - start
    answers = max(durations.student, durations.teacher) / replicas
    slowest = max(answers, durations.training)
    least = answers + durations.training + (steps - 1) * slowest
    rows = read_metrics(folder / "metrics.jsonl")
    return {
        "mode": mode,
        "replicas": replicas,
        "seconds": whole / steps,
        "least": least / steps,
        "over_least": whole / least,
        "samples_per_s": PROMPTS * N * steps / whole,
        "busy": {lane: length(each) / whole for lane, each in spans.items()},
        "staleness": statistics.mean(row["staleness/tokens_mean"] for row in rows),
        "durations": asdict(durations),
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"timed engines (sleeps), {PROMPTS} prompts x {N} samples", title_justify="left")
    names = ("student:teacher:training", "mode", "replicas", "s/step", "least", "ratio", "samples/s", "busy %")
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    for row in rows:
        busy = "/".join(f"{100 * row['busy'][lane]:.0f}" for lane in ("student", "teacher", "trainer"))
        numbers = (f"{row['seconds']:.2f}", f"{row['least']:.2f}", f"{row['over_least']:.2f}")
        table.add_row(row["case"], row["mode"], str(row["replicas"]), *numbers, f"{row['samples_per_s']:.1f}", busy)
    Console(width=120).print(table)


def main() -> None:
    options = arguments()
    prepare_training_configs()
    config = composed(options, "session", ["http://127.0.0.1:1"], ())
    prepare_environment(mapping_of(config.ray_kwargs.ray_init.runtime_env.env_vars))
    from verl_ext.platform.ray_address import keep_to_loopback  # with which the platform is chosen

    rows: list[dict[str, Any]] = []
    with ray_session(keep_to_loopback(mapping_of(config.ray_kwargs.ray_init)), options.out / "logs"):
        from benchmarks.arms.timed_engines import Durations

        cases = [
            (case, mode, Durations(*ratio, heavy="heavy" in case), 1)
            for case, ratio in RATIOS.items()
            for mode in MODES
        ]
        cases += [("8:8:1", "stream", Durations(*SCALED), replicas) for replicas in REPLICAS]
        cases = [each for each in cases if options.only in f"{each[0]}, {each[1]}, {each[3]}"]
        if not cases:
            sys.exit(f"error: --only {options.only!r} is in no run's `CASE, MODE, REPLICAS`: give a part of one")
        session = Session(options, max(replicas for *_, replicas in cases))
        for number, (case, mode, durations, replicas) in enumerate(cases):
            print(f"running {case}, {mode}, {replicas} of each", flush=True)
            folder = session.train(f"{number}_{mode}", mode, durations, replicas, options.steps)
            rows.append({"case": case} | result_of(folder, mode, durations, replicas))
            print(f"{case}, {mode}, {replicas}: {rows[-1]['seconds']:.2f} s a step", flush=True)
    show(rows)
    report(
        rows,
        [
            (f"{row['case']}_{row['mode']}_x{row['replicas']}_over_least".replace(" ", "_"), row["over_least"], BAR)
            for row in rows
            if row["mode"] != "sync"
        ],
        options.json,
    )


if __name__ == "__main__":
    main()
