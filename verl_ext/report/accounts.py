"""What the target cost, and what a budget bought, in both published accountings (`verl_ext.comparison.accounting`)."""

from collections.abc import Callable, Mapping
from typing import Any

from verl_ext.comparison import accounting
from verl_ext.comparison.prices import Prices
from verl_ext.report.arms import Comparison
from verl_ext.report.blocks import Block, Missing, Paragraph, Table
from verl_ext.report.text import counted, duration, number, scaled

WORDS: Mapping[str, Callable[[float], str]] = {
    "samples": number,
    "updates": number,
    "FLOPs": lambda value: scaled(value, "FLOP"),
    "tokens": number,
    "seconds": duration,
    "device-seconds": duration,
}
"""How a cost is said, by unit; money as a number."""
MEANT = {
    accounting.FREE: "Data free: rows with labels were there",
    accounting.PAID: "Data paid: each run that is trained on the teacher's labels buys them",
}
SIGNS = {"at least": "≥ ", "at most": "≤ "}
Account = Mapping[str, Any]


def account_of(found: Comparison, prices: Prices | None) -> Account | None:
    """Every cost, ratio and budget; None without a target, or a ledger beside validations."""
    runs = [run.account for arm in found.arms for run in arm.runs if run.account is not None]
    if found.target is None or not runs:
        return None
    return accounting.account(runs, found.target, baseline_of(found), prices)


def baseline_of(found: Comparison) -> str:
    """The arm that the others are compared with: the first SFT, else the first."""
    return next((arm.name for arm in found.arms if arm.kind == "sft"), found.arms[0].name if found.arms else "")


def costs_to_target(found: Comparison, prices: Prices | None) -> list[Block]:
    """For each accounting: what the target cost, how many times the baseline's, what an equal budget bought."""
    if found.target is None:
        return [Missing("the target accuracy", "It is a share of the teacher's, which the headroom measures.")]
    account = account_of(found, prices)
    if account is None:
        return [Missing("what the target cost", "Each run's ledger.jsonl and accuracy.jsonl have it.")]
    blocks: list[Block] = []
    for paid, meant in MEANT.items():
        rows = [row for row in account["rows"] if row["accounting"] == paid]
        blocks += [_costs(found, rows, meant), _ratios(rows, account["baseline"], meant), _budgets(rows, meant)]
    without = [run.record["run"] for arm in found.arms for run in arm.runs if run.account is None and run.files]
    if without:
        blocks.append(
            Missing(f"{counted(len(without), 'run')} without a ledger or a validation", ", ".join(without[:10]))
        )
    note = (
        "Costs are those of the first validation at the target: an arm may have got there up to one validation "
        "earlier. Means are over seeds, with Student's 95 % interval where they differ; an arm of which a seed did not "
        "get there has no mean, and its ratio is a bound. Validation itself is in no cost."
    )
    return [Paragraph(note), *blocks]


def _units(rows: list[Account]) -> list[str]:
    return list(dict.fromkeys(row["unit"] for row in rows))


def _by_arm(rows: list[Account]) -> dict[str, dict[str, Account]]:
    found: dict[str, dict[str, Account]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["unit"]] = row
    return found


def _costs(found: Comparison, rows: list[Account], meant: str) -> Table:
    units = _units(rows)
    lines = []
    for arm, of in _by_arm(rows).items():
        first = of[accounting.SAMPLES]
        cells = (
            _mean(of[unit]["cost_mean"], WORDS.get(unit, number)) or _missed(of[unit], first["reached"])
            for unit in units
        )
        lines.append((arm, f"{first['reached']} of {first['seeds']}", *cells))
    columns = ("arm", "reached by", *units)
    return Table(f"{meant}: cost of {found.target_words}", columns, tuple(lines))


def _mean(mean: Account | None, word: Callable[[float], str]) -> str:
    """A mean with its interval; "" where there is none."""
    if mean is None:
        return ""
    middle = word(mean["mean"])
    if mean["low"] is None or mean["low"] == mean["high"]:
        return middle
    low, high = word(max(mean["low"], 0.0)), word(mean["high"])
    unit = middle.partition(" ")[2]
    if unit and unit == low.partition(" ")[2] == high.partition(" ")[2] and " " not in unit:
        return f"{middle.partition(' ')[0]} ({low.partition(' ')[0]}–{high.partition(' ')[0]}) {unit}"
    return f"{middle} ({low}–{high})"


def _missed(row: Account, reached: int) -> str:
    """Why there is no mean: of the seeds `reached` got there, or what it cost them is not known."""
    known = [cost for cost in row["cost"].values() if cost is not None]
    if len(known) < reached or not known:
        return "not known" if reached else "not reached"
    return f"{WORDS.get(row['unit'], number)(min(known))} at best"


def _ratios(rows: list[Account], baseline: str, meant: str) -> Table:
    units, lines = _units(rows), []
    for arm, of in _by_arm(rows).items():
        if arm != baseline:
            lines.append((arm, *(_ratio(of[unit]) for unit in units)))
    return Table(f"{meant}: times the cost of {baseline}, seed by seed", ("arm", *units), tuple(lines))


def _ratio(row: Account) -> str:
    if row["ratio"] is not None:
        return _mean(row["ratio"], lambda value: number(value, 3))
    seeds = row["ratio_by_seed"]
    kinds = {each["kind"] for each in seeds} - {"exact"}
    if len(kinds) != 1 or kinds == {"unknown"}:
        return "–"
    (kind,) = kinds  # the mean of bounds on one side is a bound of the mean
    return f"{SIGNS[kind]}{number(accounting.geometric([each['value'] for each in seeds]).mean, 3)}"


def _budgets(rows: list[Account], meant: str) -> Table:
    units, lines = _units(rows), []
    by_arm = _by_arm(rows)
    budgets = next(iter(by_arm.values()))
    lines.append(("(the budget)", *(_budget(budgets[unit]) for unit in units)))
    for arm, of in by_arm.items():
        lines.append((arm, *(_mean(of[unit]["accuracy_mean"], "{:.3f}".format) or "–" for unit in units)))
    caption = f"{meant}: accuracy within an equal budget, all that the cheapest run spent"
    return Table(caption, ("arm", *units), tuple(lines), folded=True)


def _budget(row: Account) -> str:
    return "not known" if row["budget"] is None else WORDS.get(row["unit"], number)(row["budget"])
