"""Where the seconds of a run's steps went: from `metrics.jsonl`, and from `timeline.jsonl` where the run has one."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.plan.throughput import Engines, StepTimes
from verl_ext.run.files import read_lines
from verl_ext.run.metrics import read_metrics
from verl_ext.run.timeline import Span, lanes, length, read_timeline, union

TRAINING = tuple(
    f"timing_s/{stage}" for stage in ("reward", "old_log_prob", "ref", "values", "adv", "update_critic", "update_actor")
)
"""What verl times of the trainer's work; a stage that a run lacks has no key."""
WAITING = "timing_s/gen"
STARTED = "settings are checked"
"""The stage in `stages.jsonl` with which every start of a run begins."""


@dataclass(frozen=True)
class Looked:
    """The steps of a run that say what its later ones take."""

    steps: list[StepTimes]
    notes: list[str]
    """What was left out or is not known, in words."""


def look(run: Path, ahead: int) -> Looked:
    """The steps of the run's last start: not its first, which warms up, nor the last `ahead`, which sample less.

    Raises:
        ValueError: if the folder holds no steps of an on-policy run.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(f"{run}: no metrics.jsonl in it; give the folder of a run (run_dir) that finished a step")
    rows = read_metrics(file)
    if not rows or WAITING not in rows[-1]:
        found = f"no {WAITING}" if rows else "no finished step"
        raise ValueError(f"{file}: {found}; give the folder of an on-policy run that finished a step")
    timeline = run / "timeline.jsonl"
    timed, notes = last_start(read_timeline(timeline) if timeline.is_file() else [], starts(run))
    if timed:
        own = {step["step"] for step in timed}
        rows = [row for row in rows if row["step"] in own]
    else:
        notes += _without_timeline(run, ahead, len(starts(run)))
    whole = rows
    if len(rows) > 1:
        rows = rows[1:]
    else:
        notes.append("one step, which warmed up: its seconds are longer than those of the next")
    if 0 < ahead < len(rows):
        rows = rows[:-ahead]
    first, last, left = rows[0]["step"], rows[-1]["step"], len(whole) - len(rows)
    used = f"medians of steps {first:.0f} to {last:.0f}" if len(rows) > 1 else f"step {first:.0f}"
    notes.insert(0, f"{used}; {left} at the ends left out" if left else used)
    busy = lanes(timed)
    windows = {step["step"]: (step["stages"][0][1], step["stages"][-1][1]) for step in timed}
    return Looked([step_times(row, windows.get(int(row["step"])), busy) for row in rows], notes)


def _without_timeline(run: Path, ahead: int, begun: int) -> list[str]:
    """What is not known without one. Raises ValueError where that is what is asked for."""
    if ahead:
        raise ValueError(
            f"{run}: no timeline.jsonl in it, without which nothing is known of what was sampled during training; "
            "run it again, or give a run with pipeline.mode=sync"
        )
    notes = ["no timeline.jsonl: the student counts as busy for as long as the trainer waits"]
    return [*notes, f"the run was started {begun} times: the steps of all are in the medians"] if begun > 1 else notes


def starts(run: Path) -> list[float]:
    """When the run was started, unix seconds, the first time and to be resumed; empty where it does not say."""
    file = run / "stages.jsonl"
    if not file.is_file():
        return []
    lines = read_lines(file, "take the file away")
    return [line["time"] for line in lines if line.get("stage") == STARTED]


def last_start(timed: Sequence[Mapping[str, Any]], begun: Sequence[float]) -> tuple[list[dict[str, Any]], list[str]]:
    """The steps that ended after the last start that has some, and a note of how many others there are."""
    by_start: dict[int, list[dict[str, Any]]] = {}
    for step in timed:
        by_start.setdefault(bisect.bisect(begun, step["stages"][0][1]), []).append(dict(step))
    if not by_start:
        return [], []
    last = by_start[max(by_start)]
    left = len(timed) - len(last)
    return last, [f"{left} of earlier starts left out"] if left else []


def step_times(row: Mapping[str, float], window: Span | None, busy: Mapping[str, Sequence[Span]]) -> StepTimes:
    """One row of metrics, and what was busy within its `window`; without one the student is while the trainer waits."""
    saving, waiting, at_teacher = row.get("timing_s/save_checkpoint", 0.0), row[WAITING], row["teacher/seconds"]
    if window is None:
        student, teacher, answering = waiting, min(at_teacher, waiting), waiting
    else:
        student, teacher, answering = (
            length(_within(spans, window))
            for spans in (busy["student"], busy["teacher"], union([*busy["student"], *busy["teacher"]]))
        )
    return StepTimes(
        step=int(row["step"]),
        whole=row["timing_s/step"] - saving,
        waiting=waiting,
        training=sum(row.get(key, 0.0) for key in TRAINING),
        sync=row.get("timing_s/update_weights", 0.0),
        student=student,
        teacher=teacher,
        answering=answering,
        in_flight=row.get("teacher/busy_seconds", 0.0) / at_teacher if at_teacher else 0.0,
        saving=saving,
        testing=row.get("timing_s/testing", 0.0),
    )


def _within(spans: Sequence[Span], window: Span) -> list[Span]:
    start, end = window
    return [(max(a, start), min(b, end)) for a, b in spans if a < end and b > start]


def read_config(run: Path) -> DictConfig:
    """A run's resolved configuration. Raises ValueError where the folder has none of an on-policy run."""
    file = run / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{run}: no config.yaml in it; give the folder of a run (run_dir)")
    config = OmegaConf.load(file)
    if not isinstance(config, DictConfig) or "method" not in config:
        raise ValueError(f"{file} is not of an on-policy run; give the folder of one (run_dir)")
    return config


def engines_of(config: DictConfig, mode: str, ahead: int) -> Engines:
    """What a run's stages ran on, by its configuration; `mode` and `ahead` are its pipeline's."""
    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    ranks = trainer.nnodes * trainer.n_gpus_per_node
    teachers = [OmegaConf.merge(config.teacher, each) for each in config.get("teachers", {}).values()]
    replicas, slots = 0, 0
    for teacher in teachers or [config.teacher]:
        servers = len(teacher.urls) if teacher.mode == "external" else 1
        replicas += teacher.dp if teacher.mode == "managed" else servers
        slots += servers * teacher.max_concurrency
    return Engines(
        mode=mode,
        ahead=ahead,
        samples=config.data.train_batch_size * rollout.n,
        students=max(1, ranks // rollout.tensor_model_parallel_size),
        teachers=max(1, replicas),  # 0 where a store answers for all
        slots=max(1, slots),
    )
