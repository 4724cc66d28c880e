"""Charts with a line for each arm: means over its seeds, bands from the lowest seed to the highest."""

from collections.abc import Sequence

import numpy as np

from verl_ext.report.arms import Comparison
from verl_ext.report.blocks import Block, Chart, Legend, Missing, Series
from verl_ext.report.curves import CURVES, changes, mean_and_band, unfit_note
from verl_ext.report.text import number, unit_of
from verl_ext.report.verdict import WORDS


def legend_of(found: Comparison) -> Legend:
    """The arms that have begun."""
    return Legend(tuple((arm.name, arm.colour, arm.name) for arm in found.arms if arm.done))


def accuracies(found: Comparison) -> list[Block]:
    """Held-out accuracy against samples, FLOPs and seconds."""
    charts = [_accuracy_chart(found, "samples", "Samples", "samples trained on", wide=True)]
    charts.append(_accuracy_chart(found, "flops", "Computation", "FLOP of the run"))
    charts.append(_accuracy_chart(found, "seconds", "Time", "seconds of the run"))
    shown: list[Block] = [chart for chart in charts if chart.series]
    if not shown:
        return [
            Missing(
                "accuracy.jsonl, held-out accuracy along the training", "`verl-opd compare run` writes it for each run."
            )
        ]
    if len(shown) < len(charts):
        shown.append(
            Missing("accuracy against FLOP and time", "Each run's ledger.jsonl has what was spent by each step.")
        )
    return [legend_of(found), *shown]


def _accuracy_chart(found: Comparison, measure: str, title: str, x_label: str, wide: bool = False) -> Chart:
    series, said = [], []
    every = [getattr(point, measure) or 0.0 for arm in found.arms for run in arm.runs for point in run.points]
    unit, size = unit_of(max(every, default=0.0)) if measure == "flops" else ("", 1.0)
    for arm in found.arms:
        lines = [
            [(value / size, point.accuracy) for point in run.points if (value := getattr(point, measure)) is not None]
            for run in arm.runs
        ]
        if any(len(line) > 1 for line in lines):
            x, mean, low, high = _band([line for line in lines if len(line) > 1])
            banded = len(lines) > 1
            series.append(
                Series(arm.name, x, mean, low if banded else None, high if banded else None, arm.colour, arm.name)
            )
            said.append(f"{arm.name} ends at {mean[-1]:.3f} after {WORDS[measure](float(x[-1]) * size)}")
    sentence = (
        "; ".join(said[:12]) + (f"; {len(said) - 12} further arms are in the table" if len(said) > 12 else "") + "."
    )
    if any(each.low is not None for each in series):
        sentence += " Lines are means over seeds, bands reach from the lowest seed to the highest."
    target = (found.target, f"{found.record['target_share']:.0%} of the teacher") if found.target else None
    return Chart(
        f"Held-out accuracy by {title.lower()}",
        "share of held-out rows",
        f"{unit}{x_label}",
        tuple(series),
        sentence,
        wide=wide,
        y_range=(0.0, 1.0),
        target=target,
        legend=False,
    )


def _band(lines: Sequence[Sequence[tuple[float, float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, smallest and largest over seeds, between the validations, as far as all seeds got."""
    tables = [np.array(line, dtype=np.float64) for line in lines]
    start, end = max(table[0, 0] for table in tables), min(table[-1, 0] for table in tables)
    x = np.unique(np.concatenate([table[:, 0] for table in tables]))
    x = np.unique([*x[(x >= start) & (x <= end)], end])
    values = np.array([np.interp(x, table[:, 0], table[:, 1]) for table in tables])
    return x, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def curves(found: Comparison) -> list[Block]:
    """Means over seeds with their range, one line an arm."""
    blocks: list[Block] = [legend_of(found)]
    for curve in CURVES:
        series, said, metrics = [], [], []
        for arm in found.arms:
            own = [metric for files in arm.done if changes(metric := files.metric(curve.key))]
            if own:
                steps, mean, low, high = mean_and_band(own)
                band = (low, high) if len(own) > 1 else (None, None)
                series.append(Series(arm.name, steps, mean, *band, colour=arm.colour, key=arm.name))
                said.append(f"{arm.name} {number(mean[0], 3)} → {number(mean[-1], 3)}")
                metrics += own
        if series:
            more = f"; {len(said) - 12} further arms are in the picture" if len(said) > 12 else ""
            sentence = f"First and last: {'; '.join(said[:12])}{more}."
            blocks.append(
                Chart(curve.title, curve.unit, "step", tuple(series), sentence, unfit_note(metrics), legend=False)
            )
    return blocks if len(blocks) > 1 else [Missing("metrics.jsonl of a run", "Training writes a row a step.")]
