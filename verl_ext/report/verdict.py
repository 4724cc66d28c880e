"""The answer of a comparison: which arm, at what cost, how sure."""

from collections.abc import Sequence

import numpy as np

from verl_ext.comparison import accounting
from verl_ext.report.accounts import Account, account_of, baseline_of
from verl_ext.report.arms import Arm, Comparison
from verl_ext.report.blocks import Block, Fact, Facts, Missing, Paragraph, Table
from verl_ext.report.settings import public
from verl_ext.report.text import counted, number, short

FACTS = 7
"""Arms whose accuracy is shown large, the best ones."""


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
    there = sorted(
        ((samples, arm) for arm in learned if (samples := _samples_to(arm, found.target))), key=lambda p: p[0]
    )
    if not there:
        return f"{text} None reached {found.target_words}."
    samples, arm = there[0]
    text += f" {arm.name} needed the fewest samples to {found.target_words}: {number(samples)}"
    if len(there) > 1:
        later, other = there[1]
        many = "as many" if later < 1.005 * samples else f"{number(later)}, {later / samples:.2f} times as many"
        text += f"; {other.name} needed {many}"
    return f"{text}.{_computed(found, arm)}"


def _samples_to(arm: Arm, target: float) -> float | None:
    """Mean over seeds of the samples to the target; None where a seed did not get there."""
    points = [run.to(target) for run in arm.runs]
    reached = [point.samples for point in points if point is not None]
    return float(np.mean(reached)) if reached and len(reached) == len(points) else None


def _computed(found: Comparison, arm: Arm) -> str:
    """Its computation to the target over the baseline's, in both accountings; "" where there is no ratio."""
    account = account_of(found, None)
    if account is None or arm.name == baseline_of(found):
        return ""
    said = [words for paid in accounting.ACCOUNTINGS if (words := _flops(account, arm.name, paid))]
    return f" In FLOP it took {' and '.join(said)} what {account['baseline']} took." if said else ""


def _flops(account: Account, arm: str, paid: str) -> str:
    row = next(r for r in account["rows"] if (r["arm"], r["accounting"], r["unit"]) == (arm, paid, "FLOPs"))
    ratio = row["ratio"]
    if ratio is None:
        return ""
    sure = "one seed" if ratio["low"] is None else f"95 %: {number(ratio['low'], 2)}–{number(ratio['high'], 2)}"
    return f"{number(ratio['mean'], 3)} times ({sure}; {paid})"


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
