"""Charts with a line for each arm: means over its seeds, bands from the lowest seed to the highest."""

from collections.abc import Sequence

import numpy as np

from verl_ext.comparison import accounting
from verl_ext.report.accounts import WORDS
from verl_ext.report.arms import Comparison
from verl_ext.report.blocks import Block, Chart, Legend, Missing, Series
from verl_ext.report.curves import CURVES, changes, mean_and_band, unfit_note
from verl_ext.report.text import number, unit_of

SAID = 12
"""Arms that a sentence names."""


def legend_of(found: Comparison) -> Legend:
    """The arms that have begun."""
    return Legend(tuple((arm.name, arm.colour, arm.name) for arm in found.arms if arm.done))


def accuracies(found: Comparison) -> list[Block]:
    """Held-out accuracy against samples, FLOPs and seconds; labels are paid for."""
    charts = [
        _accuracy_chart(found, "samples", "samples trained on", accounting.FREE, wide=True),
        _accuracy_chart(found, "FLOPs", "FLOP, the teacher's labels paid for", accounting.PAID),
        _accuracy_chart(found, "seconds", "seconds, the teacher's labels paid for", accounting.PAID),
    ]
    shown: list[Block] = [chart for chart in charts if chart.series]
    if not shown:
        return [Missing("accuracy.jsonl, held-out accuracy along the training", "`verl-opd compare run` writes it.")]
    if len(shown) < len(charts):
        shown.append(Missing("accuracy against FLOP and time", "Each run's ledger.jsonl has what each step spent."))
    return [legend_of(found), *shown]


def _accuracy_chart(found: Comparison, unit: str, x_label: str, paid: str, wide: bool = False) -> Chart:
    lines = {
        arm.name: [
            [(value, point.accuracy) for point in run.points if (value := run.spent(point, unit, paid)) is not None]
            for run in arm.runs
        ]
        for arm in found.arms
    }
    largest = max((value for each in lines.values() for line in each for value, _ in line), default=0.0)
    prefix, size = unit_of(largest) if unit == "FLOPs" else ("", 1.0)
    series, said = [], []
    for arm in found.arms:
        drawn = [line for line in lines[arm.name] if len(line) > 1]
        if drawn:
            x, mean, low, high = _band(drawn)
            band = (low, high) if len(drawn) > 1 else (None, None)
            series.append(Series(arm.name, x / size, mean, *band, arm.colour, arm.name))
            said.append(f"{arm.name} ends at {mean[-1]:.3f} after {WORDS[unit](float(x[-1]))}")
    sentence = (
        "; ".join(said[:SAID]) + (f"; {len(said) - SAID} more are in the picture" if len(said) > SAID else "") + "."
    )
    if any(each.low is not None for each in series):
        sentence += " Lines are means over seeds, bands reach from the lowest seed to the highest."
    return Chart(
        f"Held-out accuracy by {unit}",
        "share of held-out rows",
        f"{prefix}{x_label}",
        tuple(series),
        sentence,
        wide=wide,
        legend=False,
        y_range=(0.0, 1.0),
        target=(found.target, f"{found.record['target_share']:.0%} of the teacher") if found.target else None,
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
