"""What a run spent, from its ledger, or from its metrics where it has none."""

from collections.abc import Sequence

from verl_ext.ledger.entries import Entry, Flops
from verl_ext.ledger.ledger import totals
from verl_ext.report.blocks import Block, Missing, Paragraph, Table
from verl_ext.report.files import RunFiles
from verl_ext.report.text import counted, duration, number, scaled

TOKENS = {
    "sampled": "sampled",
    "prefilled": "prefilled",
    "prefilled_cached": "prefilled, cached",
    "scored": "scored by the teacher",
    "trained": "trained on",
}
FLOPS = {
    "sample": "sampling",
    "score": "scoring",
    "train_forward": "training, forward",
    "train_backward": "training, backward",
}
COLUMNS = ("samples", *(f"tokens {name}" for name in TOKENS.values()))
KEPT = Missing("ledger.jsonl, what each phase spent", "Runs of this version write it.")


def spent(run: RunFiles) -> list[Block]:
    """One table by phase; its last row is their sum."""
    if run.ledger is None or not run.ledger.entries:
        return [KEPT, *_from_metrics(run)]
    entries, phases = run.ledger.entries, by_phase(run.ledger.entries)
    rows = [_row(name, each) for name, each in phases.items()]
    if len(rows) > 1:
        rows.append(_row("all", entries))
    columns = ("phase", *COLUMNS, "FLOP", "time", "device time", "peak memory", "energy")
    found: list[Block] = [Table("What each phase spent", columns, tuple(rows)), _by_purpose(phases)]
    if run.ledger.abandoned:
        lost = totals(run.ledger.abandoned)
        steps = counted(len(run.ledger.abandoned), "entry", "entries")
        found.append(
            Paragraph(f"Beside that, {steps} of steps that were made again after a resume: {duration(lost.seconds)}.")
        )
    return found


def by_phase(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    phases: dict[str, list[Entry]] = {}
    for entry in entries:
        phases.setdefault(entry.phase, []).append(entry)
    return phases


def _by_purpose(phases: dict[str, list[Entry]]) -> Table:
    rows = []
    for name, each in phases.items():
        flops: Flops | None = totals(each).flops
        rows.append((name, *(scaled(vars(flops)[key] if flops else None, "FLOP") for key in FLOPS)))
    return Table("FLOP by what they were for", ("phase", *FLOPS.values()), tuple(rows))


def _row(name: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    found = totals(entries)
    return (
        name,
        f"{found.samples:,}",
        *(f"{vars(found.tokens)[key]:,}" for key in TOKENS),
        scaled(found.flops.total if found.flops else None, "FLOP"),
        duration(found.seconds),
        duration(found.device_seconds) if all(entry.devices for entry in entries) else "–",
        f"{found.peak_bytes / 2**30:.2f} GiB" if found.peak_bytes is not None else "–",
        scaled(found.energy_joules, "J"),
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
    return [Table("Sums over the steps, from metrics.jsonl", ("what", "sum"), rows)] if rows else []
