"""`accuracy.jsonl` of a run: held-out accuracy along its training, a line a validation, step 0 being the base."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

from verl_ext.run.files import write_atomically
from verl_ext.run.metrics import read_metrics

FILE = "accuracy.jsonl"
SCHEMA = 1


@dataclass(frozen=True)
class Point:
    """One validation."""

    step: int
    """Training steps before it; 0 is the student before training."""
    samples: int
    """Sequences trained on before it, repeated ones counted again."""
    updates: int
    """Optimizer steps before it."""
    accuracy: float
    """Share of the held-out rows answered right, greedily and without the prompt, in [0, 1]."""
    rows: int
    """Held-out rows."""

    def after(self, earlier: "Point") -> "Point":
        """The same point of a training that went on from `earlier`."""
        counts = (self.step + earlier.step, self.samples + earlier.samples, self.updates + earlier.updates)
        return Point(*counts, self.accuracy, self.rows)


def accuracy_of(row: Mapping[str, float]) -> float | None:
    """Held-out accuracy in a row of metrics.jsonl; None where the step was not validated."""
    found = [value for key, value in row.items() if key.startswith("val-core/") and "/mean@" in key]
    return found[0] if found else None


def on_policy_points(run_dir: Path, rows: int) -> list[Point]:
    """The validations of an on-policy run so far. Samples are those that were sampled, scored or not."""
    if not (run_dir / "metrics.jsonl").is_file():
        return []
    config = OmegaConf.load(run_dir / "config.yaml")
    data, actor = config.data.train_batch_size, config.actor_rollout_ref.actor
    updates_a_step = data // actor.ppo_mini_batch_size * actor.ppo_epochs
    points, samples = [], 0
    for row in read_metrics(run_dir / "metrics.jsonl"):
        if "teacher/scored" not in row:
            continue  # a validation before training
        samples += round(row["teacher/scored"] + row["teacher/unscored"])
        step = round(row["step"])
        if (accuracy := accuracy_of(row)) is not None:
            points.append(Point(step, samples, step * updates_a_step, accuracy, rows))
    return points


def sft_point(run_dir: Path, step: int, accuracy: float, rows: int) -> Point:
    """Of an SFT run's checkpoint."""
    batch = OmegaConf.load(run_dir / "config.yaml").data.train_batch_size
    return Point(step, step * batch, step, accuracy, rows)


def write_curve(run_dir: Path, points: Sequence[Point]) -> None:
    lines = (json.dumps({"schema": SCHEMA} | asdict(point)) for point in points)
    write_atomically(run_dir / FILE, "".join(f"{line}\n" for line in lines))


def read_curve(run_dir: Path) -> list[Point]:
    """The points so far; none before the first. Half a line at the end is passed over."""
    file = run_dir / FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [Point(**{key: value for key, value in row.items() if key != "schema"}) for row in rows]


def samples_to(points: Sequence[Point], accuracy: float) -> int | None:
    """Samples at the first validation that reaches an accuracy; None where none does."""
    return next((point.samples for point in points if point.accuracy >= accuracy), None)
