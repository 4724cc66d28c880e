"""Curves over the steps: which metrics are drawn, in which unit, and what each shows in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from verl_ext.report.blocks import Block, Chart, Missing, Series, Table
from verl_ext.report.files import Metric, RunFiles
from verl_ext.report.text import number
from verl_ext.run.metric_names import unit_of


@dataclass(frozen=True)
class Curve:
    """One metric as a picture."""

    key: str
    title: str
    unit: str


CURVES = (
    Curve("teacher_kl", "Reverse KL from the teacher", "nats a sampled token"),
    Curve("train/loss", "Loss", "nats a token that is learned"),
    Curve("val/loss", "Held-out loss", "nats a token that is learned"),
    Curve("critic/rewards/mean", "Right answers sampled", "share of the step's samples"),
    Curve("actor/entropy", "Entropy of the student", "nats a sampled token"),
    Curve("response_length/mean", "Length of an answer", "tokens, mean of the step's samples"),
    Curve("response_length/truncated_share", "Answers cut off", "share of the step's samples"),
    Curve("staleness/tokens_mean", "Age of a sampled token", "weight versions, mean of the step's tokens"),
    Curve("actor/effective_sample_size", "Effective sample size", "share of the step's tokens"),
    Curve("actor/ratio_outside_share", "Importance weights out of bounds", "share of the step's tokens"),
    Curve("actor/rollout_gap_max", "Trainer and sampler disagree", "nats, largest of the step's tokens"),
    Curve("advantage/variance", "Variance of the advantage", "square nats, over the step's tokens"),
    Curve("actor/grad_norm", "Norm of the gradient", "before clipping"),
    Curve("train/grad_norm", "Norm of the gradient", "before clipping"),
    Curve("actor/lr", "Learning rate", "of the step"),
    Curve("train/lr", "Learning rate", "of the step"),
    Curve("replay/share", "Samples of earlier steps", "share of the step's samples"),
    Curve("teacher/unscored", "Samples without a score", "samples a step"),
    Curve("timing_s/step", "Time of a step", "seconds"),
)
"""What is drawn where a run has it and it changes, in this order."""
KEYS = frozenset(curve.key for curve in CURVES)
HELD_OUT = Curve("", "Held-out accuracy", "share of held-out rows, or the mean of a reward of your own")
CONSTANT = "The same at every step, to six digits"
OTHERS = 400
"""Metrics that the table of the others has at most."""


def tells(metric: Metric, unit: str = "", x: str = "step") -> str:
    """What a curve shows: its first and last value, and its extremes where those are others."""
    steps, values = metric.steps, metric.values
    if not len(values):
        return "No value that is a number."
    if len(values) == 1:
        return f"{number(values[0])} at {x} {number(steps[0])}, the only one."
    first, last = float(values[0]), float(values[-1])
    moved = "falls" if last < first else "rises" if last > first else "goes"
    text = (
        f"It {moved} from {number(first, 3)} at {x} {number(steps[0])} to {number(last, 3)} at {x} {number(steps[-1])}"
    )
    low, high = int(values.argmin()), int(values.argmax())
    ends = (first, last)
    if values[low] < min(ends):
        text += f"; smallest {number(values[low], 3)} at {number(steps[low])}"
    if values[high] > max(ends):
        text += f"; largest {number(values[high], 3)} at {number(steps[high])}"
    return f"{text}.{f' Unit: {unit}.' if unit else ''}"


def unfit_note(metrics: Sequence[Metric]) -> str:
    left = sum(metric.unfit for metric in metrics)
    return f"{left:,} values that are no finite number are left out." if left else ""


def changes(metric: Metric) -> bool:
    """In its first six digits."""
    return len(metric.values) > 0 and bool(np.ptp(metric.values) > 1e-6 * np.abs(metric.values).max())


def curves_of(run: RunFiles) -> list[Block]:
    """The curves of one run, the metrics that are not drawn, and those that say nothing."""
    if not run.by_step:
        return [Missing("metrics.jsonl has no finished step", "Training writes a row a step.")]
    blocks: list[Block] = []
    drawn = set()
    for curve in [*_held_out(run), *CURVES]:
        metric = run.metric(curve.key)
        if changes(metric):
            drawn.add(curve.key)
            series = Series(curve.title, metric.steps, metric.values, key=curve.key)
            note = unfit_note([metric])
            blocks.append(Chart(curve.title, curve.unit, "step", (series,), tells(metric), note))
    if not any(isinstance(block, Chart) for block in blocks):
        blocks.append(Missing("a curve", "No metric changed, or there is one step only; the table has the values."))
    return [*blocks, *_others(run, drawn)]


def _held_out(run: RunFiles) -> list[Curve]:
    """verl's name of the held-out accuracy has the rows' source in it."""
    keys = sorted(
        {key for row in run.by_step.values() for key in row if key.startswith("val-core/") and "/mean@" in key}
    )
    return [
        replace(HELD_OUT, key=key, title=HELD_OUT.title + (f", {key.split('/')[1]}" if len(keys) > 1 else ""))
        for key in keys
    ]


def _others(run: RunFiles, drawn: set[str]) -> list[Block]:
    keys = sorted({key for row in run.by_step.values() for key in row} - drawn - {"step"})
    found = {key: run.metric(key) for key in keys}
    changing = [key for key in keys if changes(found[key])]
    constant = [key for key in keys if len(found[key].values) and not changes(found[key])]
    rows = [
        (key, unit_of(key), *(number(float(value)) for value in (v[0], v[-1], v.min(), v.max())))
        for key in changing[:OTHERS]
        for v in (found[key].values,)
    ]
    blocks: list[Block] = []
    if rows:
        left = f", {len(changing) - OTHERS} left out" if len(changing) > OTHERS else ""
        caption = f"{len(rows)} further metrics{left}"
        blocks.append(
            Table(caption, ("metric", "unit", "first", "last", "smallest", "largest"), tuple(rows), 2, folded=True)
        )
    if constant:
        same = tuple((key, unit_of(key), number(float(found[key].values[0]))) for key in constant[:OTHERS])
        blocks.append(Table(f"{CONSTANT}: {len(constant)} metrics", ("metric", "unit", "value"), same, 2, folded=True))
    return blocks


def mean_and_band(metrics: Sequence[Metric]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps that any run has; mean, smallest and largest over the runs that have got there."""
    steps = np.unique(np.concatenate([metric.steps for metric in metrics]))
    values = np.full((len(metrics), len(steps)), np.nan)
    for row, metric in zip(values, metrics, strict=True):
        row[np.searchsorted(steps, metric.steps)] = metric.values
    return steps, np.nanmean(values, axis=0), np.nanmin(values, axis=0), np.nanmax(values, axis=0)
