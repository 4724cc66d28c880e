"""The answer of a comparison: which arm, at what cost, how sure."""

from collections.abc import Callable, Sequence

import numpy as np

from verl_ext.report.arms import Arm, Comparison, spread_of
from verl_ext.report.blocks import Block, Fact, Facts, Missing, Paragraph, Table
from verl_ext.report.settings import public
from verl_ext.report.text import counted, duration, number, scaled, short

FACTS = 7
"""Arms whose accuracy is shown large, the best ones."""
WORDS: dict[str, Callable[[float], str]] = {
    "samples": number,
    "updates": number,
    "flops": lambda value: scaled(value, "FLOP"),
    "seconds": duration,
}


def answer(found: Comparison) -> list[Block]:
    """Which arm, at what cost, how sure."""
    headroom, learned = found.record["headroom"], [arm for arm in found.tried if arm.mean is not None]
    blocks: list[Block] = []
    if not learned:
        blocks.append(Paragraph("No arm has a result yet.", lead=True))
    else:
        blocks.append(Paragraph(_verdict(found, learned), lead=True))
        best = sorted(learned, key=lambda arm: -(arm.mean or 0.0))[:FACTS]
        blocks.append(Facts(tuple(Fact(arm.name, share(arm.mean), seeds_of(arm)) for arm in best)))
    if headroom:
        gain = headroom["teacher"] - headroom["base"]
        rows = counted(headroom["rows"], "held-out row")
        blocks.append(
            Paragraph(
                f"Headroom: of {rows} the base is right on {headroom['base']:.1%}, "
                f"the teacher on {headroom['teacher']:.1%}; at most {gain:.1%} can be gained."
            )
        )
    else:
        blocks.append(Missing("the headroom, teacher minus base", "`verl-opd compare run` measures it first."))
    return [*blocks, *_states(found)]


def _verdict(found: Comparison, learned: Sequence[Arm]) -> str:
    best = max(learned, key=lambda arm: arm.mean or 0.0)
    text = f"{best.name} ends best, at {share(best.mean)} held-out accuracy ({seeds_of(best)})"
    if others := [arm for arm in learned if arm is not best]:
        second = max(others, key=lambda arm: arm.mean or 0.0)
        text += f"; next is {second.name} with {share(second.mean)} ({seeds_of(second)})"
        low, high = min(best.finals), max(second.finals)
        apart = "the seeds of the two do not overlap" if low > high else "their seeds overlap: the order is not sure"
        text += f", and {apart}" if min(len(best.finals), len(second.finals)) > 1 else ", by too few seeds to be sure"
    text += "."
    if found.target is None:
        return text
    first = [(arm, _at_target(arm, found.target, "samples")) for arm in learned]
    there = sorted(((values, arm) for arm, values in first if values), key=lambda pair: np.mean(pair[0]))
    if not there:
        return (
            f"{text} None reached {share(found.target)}, {found.record['target_share']:.0%} of the teacher's accuracy."
        )
    values, arm = there[0]
    text += (
        f" {arm.name} needed the fewest samples to {share(found.target)} ({found.record['target_share']:.0%} of the "
    )
    text += f"teacher's accuracy): {number(float(np.mean(values)))}"
    if len(there) > 1:
        later, other = there[1]
        times = float(np.mean(later) / np.mean(values))
        many = "as many" if times < 1.005 else f"{number(float(np.mean(later)))}, {times:.2f} times as many"
        text += f"; {other.name} needed {many}"
    return f"{text}."


def _at_target(arm: Arm, target: float, measure: str) -> list[float]:
    """What its seeds had spent when they got there; those that did not are left out."""
    points = [point for run in arm.runs if (point := run.to(target)) is not None]
    return [value for point in points if (value := getattr(point, measure)) is not None]


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def seeds_of(arm: Arm) -> str:
    if len(arm.finals) < 2:
        return "one seed" if arm.finals else "no result"
    return f"{len(arm.finals)} seeds, {min(arm.finals):.3f}–{max(arm.finals):.3f}"


def _states(found: Comparison) -> list[Block]:
    """The runs that are not done, and why."""
    rows = [
        (f"{arm.name}, seed {run.record['seed']}", run.record["status"], short(public(run.record["error"] or ""), 400))
        for arm in found.arms
        for run in arm.runs
        if run.record["status"] != "done"
    ]
    return [Table("Runs that are not done", ("run", "status", "why"), tuple(rows), texts=3)] if rows else []


def to_target(found: Comparison) -> list[Block]:
    """Samples, updates, FLOP and time until the target, over seeds."""
    if found.target is None:
        return [Missing("the target accuracy", "It is a share of the teacher's, which the headroom measures.")]
    rows = []
    for arm in found.arms:
        reached = sum(run.to(found.target) is not None for run in arm.runs)
        cells = []
        for measure, word in WORDS.items():
            values = _at_target(arm, found.target, measure)
            cells.append(_ranged(values, word) if values else "not reached" if not reached else "–")
        rows.append((arm.name, f"{reached} of {len(arm.runs)}", *cells))
    level = f"{share(found.target)}, {found.record['target_share']:.0%} of the teacher's accuracy"
    caption = f"Until {level}: mean over seeds (range)"
    columns = ("arm", "seeds that got there", "samples", "updates", "FLOP", "time")
    note = "Counted at validations: an arm may have got there up to one validation earlier. Other seeds are in no mean."
    return [Table(caption, columns, tuple(rows)), Paragraph(note)]


def _ranged(values: Sequence[float], word: Callable[[float], str]) -> str:
    mean, low, high = spread_of(values)
    return word(mean) if low == high else f"{word(mean)} ({word(low)}–{word(high)})"
