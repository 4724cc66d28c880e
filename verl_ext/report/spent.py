"""What a run spent, from its ledger, or from its metrics where it has none."""

from collections.abc import Sequence
from typing import Any

from verl_ext.report.blocks import Block, Missing, Table
from verl_ext.report.files import RunFiles
from verl_ext.report.text import duration, number, scaled

TOKENS = {
    "sampled": "sampled",
    "prefilled": "prefilled",
    "prefilled_cached": "prefilled, cached",
    "scored": "scored by the teacher",
    "trained": "trained on",
}
FLOPS = ("sample", "score", "train_forward", "train_backward")


def flops_of(entry: dict[str, Any]) -> float:
    return float(sum(entry["flops"].values()))


def spent(run: RunFiles) -> list[Block]:
    """One table by phase; its last row is their sum."""
    entries = run.ledger.rows
    if not entries:
        note = Missing(
            "ledger.jsonl, what each phase spent", "Runs of this version write it; what follows is from metrics.jsonl."
        )
        return [note, *_from_metrics(run)]
    phases: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        phases.setdefault(entry["phase"], []).append(entry)
    rows = [_row(name, each) for name, each in phases.items()]
    if len(rows) > 1:
        rows.append(_row("all", entries))
    columns = (
        "phase",
        "samples",
        *(f"tokens {name}" for name in TOKENS.values()),
        "FLOP",
        "time",
        "device time",
        "peak memory",
        "energy",
    )
    forms = tuple(
        (name, *(scaled(sum(e["flops"][key] for e in each), "FLOP") for key in FLOPS)) for name, each in phases.items()
    )
    return [
        Table("What each phase spent", columns, tuple(rows)),
        Table(
            "FLOP by what they were for",
            ("phase", "sampling", "scoring", "training, forward", "training, backward"),
            forms,
        ),
    ]


def _row(name: str, entries: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    def total(key: str) -> float:
        return sum(entry[key] for entry in entries)

    tokens = (f"{sum(entry['tokens'][key] for entry in entries):,}" for key in TOKENS)
    peaks = [entry["peak_bytes"] for entry in entries if entry["peak_bytes"] is not None]
    energy = [entry["energy_joules"] for entry in entries if entry["energy_joules"] is not None]
    return (
        name,
        f"{total('samples'):,}",
        *tokens,
        scaled(sum(map(flops_of, entries)), "FLOP"),
        duration(total("seconds")),
        duration(total("device_seconds")),
        f"{max(peaks) / 2**30:.2f} GiB" if peaks else "–",
        scaled(sum(energy), "J") if energy else "–",
    )


METRICS = {
    "seconds in steps": "timing_s/step",
    "tokens that the trainer read": "perf/total_num_tokens",
    "tokens that the teacher read": "teacher/tokens",
    "samples scored": "teacher/scored",
    "tokens trained on": "train/tokens",
}


def _from_metrics(run: RunFiles) -> list[Block]:
    found = {name: run.metric(key).values for name, key in METRICS.items()}
    rows = tuple((name, number(float(values.sum()))) for name, values in found.items() if values.size)
    return [Table("Sums over the steps", ("", "sum"), rows)] if rows else []
