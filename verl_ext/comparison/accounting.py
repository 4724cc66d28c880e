"""What an accuracy cost, and what a budget bought: arms side by side, in both published accountings (docs/ledger.md).

Pure functions on ledgers' entries and accuracy curves. A cost belongs to a validation: what was spent up to its step.
Nothing is interpolated between validations nor drawn on behind the last one: "not reached" is a result.

`data free`: rows with labels were there. `data paid`: the teacher's labels are bought by each run that is trained on
them. What on-policy arms pay their teacher is in both. Held-out validation is in neither.
"""

import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from verl_ext.comparison.prices import Prices, hosted, rented
from verl_ext.ledger.entries import SFT, TRAIN, Entry

FREE, PAID = "data free", "data paid"
ACCOUNTINGS = (FREE, PAID)
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t at 97.5 %, 1 to 30 degrees of freedom; beyond, the last, which is on the safe side."""


class Validated(Protocol):
    """A line of `accuracy.jsonl`."""

    @property
    def step(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def updates(self) -> int: ...
    @property
    def accuracy(self) -> float: ...


@dataclass(frozen=True)
class Run:
    """One training: an arm with a seed."""

    arm: str
    seed: int
    points: Sequence[Validated]
    """Its validations in order; steps, samples and updates count from the start of its first stage."""
    entries: Sequence[Entry]
    """Its ledger, without what was abandoned; steps of training count, from the start of its last stage."""
    before: Sequence[Entry] = ()
    """Of an arm that began with another training, that one's ledger."""
    steps_before: int = 0
    """Steps of that training."""
    labels: Sequence[Entry] | None = ()
    """What the labels that it is trained on cost; none where it needs none; None where that is not known."""

    @cached_property
    def trained(self) -> list[tuple[int, Entry]]:
        """Steps of training and their entries, in order: a long run's costs are asked for many times."""
        return sorted(trainings(self.entries), key=lambda each: each[0])

    def trained_to(self, step: int) -> list[Entry]:
        return [entry for _, entry in self.trained[: bisect_right(self.trained, step, key=lambda each: each[0])]]


@dataclass(frozen=True)
class Reached:
    """The first validation at a target or above."""

    cost: float
    step: int


@dataclass(frozen=True)
class Bought:
    """The last validation within a budget."""

    accuracy: float
    cost: float
    """What it had cost, at most the budget."""
    step: int
    ended: bool
    """The run has no later validation: it might have bought more."""


@dataclass(frozen=True)
class SeedRatio:
    """Two arms with one seed."""

    seed: int
    value: float | None
    """Cost of the one over cost of the other; a bound where only one reached the target; None where neither did."""
    kind: str
    """`exact`, `at least`, `at most` or `unknown`."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval by Student's t; no interval of a single seed."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ratio:
    """How many times the cost of another arm an arm took to a target, paired by seed."""

    seeds: Sequence[SeedRatio]
    """Those that both arms have."""
    interval: Interval | None
    """Geometric mean; None unless both arms reached the target with every one of these seeds."""


def interval(values: Sequence[float]) -> Interval:
    """Of at least one value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, None, None)
    half = T_975[min(n - 2, len(T_975) - 1)] * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def geometric(values: Sequence[float]) -> Interval:
    """Mean and interval of the logarithms, taken back. Values > 0, at least one."""
    found = interval([math.log(value) for value in values])
    return Interval(*(None if value is None else math.exp(value) for value in vars(found).values()))  # pyright: ignore[reportArgumentType]


def _flops(entries: Sequence[Entry]) -> float | None:
    return None if any(entry.flops is None for entry in entries) else sum(e.flops.total for e in entries if e.flops)


def _devices(entries: Sequence[Entry]) -> float | None:
    return sum(entry.device_seconds for entry in entries) if all(entry.devices for entry in entries) else None


SUMS: Mapping[str, Callable[[Sequence[Entry]], float | None]] = {
    "FLOPs": _flops,
    "tokens": lambda entries: sum(entry.tokens.total for entry in entries),
    "seconds": lambda entries: sum(entry.seconds for entry in entries),
    "device-seconds": _devices,
}
"""By unit, what entries cost; None where one of them does not know."""
SAMPLES, UPDATES = "samples", "updates"
HOSTED, RENTED = "money, hosted", "money, rented"
UNITS = (SAMPLES, UPDATES, *SUMS)


def units_of(prices: Prices | None) -> tuple[str, ...]:
    return UNITS if prices is None else (*UNITS, HOSTED, RENTED)


def cost(run: Run, point: Validated, unit: str, accounting: str, prices: Prices | None = None) -> float | None:
    """What a run had spent when it was validated; None where that is not known.

    Raises:
        ValueError: for an unknown unit or accounting, or money without prices.
    """
    if accounting not in ACCOUNTINGS or unit not in units_of(prices):
        raise ValueError(f"{accounting}, {unit}: expected {' or '.join(ACCOUNTINGS)}, {', '.join(units_of(prices))}")
    labels = run.labels if accounting == PAID else ()
    if unit == UPDATES:
        return point.updates
    if labels is None:
        return None
    if unit == SAMPLES:
        return point.samples + sum(entry.samples for entry in labels)
    before = (entry for _, entry in trainings(run.before))
    spent = [*labels, *before, *run.trained_to(point.step - run.steps_before)]
    if unit in SUMS:
        return SUMS[unit](spent)
    assert prices is not None  # `units_of` has no money without
    return hosted(spent, prices) if unit == HOSTED else rented(spent, prices)


def trainings(entries: Iterable[Entry]) -> list[tuple[int, Entry]]:
    """Those of training steps, each with its step."""
    return [(e.step, e) for e in entries if e.phase in (TRAIN, SFT) and e.step is not None]


def to_target(run: Run, target: float, unit: str, accounting: str, prices: Prices | None = None) -> Reached | None:
    """What it took to the accuracy `target`; None where the run did not reach it, or the cost is not known."""
    for point in run.points:
        if point.accuracy >= target:
            spent = cost(run, point, unit, accounting, prices)
            return None if spent is None else Reached(spent, point.step)
    return None


def at_budget(run: Run, budget: float, unit: str, accounting: str, prices: Prices | None = None) -> Bought | None:
    """What a budget bought; None where it did not pay for a single validation, or the costs are not known."""
    found = None
    for point in run.points:
        spent = cost(run, point, unit, accounting, prices)
        if spent is not None and spent <= budget:
            found = Bought(point.accuracy, spent, point.step, ended=point is run.points[-1])
    return found


def ratio(
    arm: Sequence[Run],
    baseline: Sequence[Run],
    target: float,
    unit: str,
    accounting: str,
    prices: Prices | None = None,
) -> Ratio:
    """Cost of `arm` to the target over that of `baseline`, seed by seed."""
    others = {run.seed: run for run in baseline}
    pairs = [(run, others[run.seed]) for run in arm if run.seed in others]
    seeds = [_seed_ratio(*pair, target, unit, accounting, prices) for pair in pairs]
    exact = [each.value for each in seeds if each.kind == "exact" and each.value is not None]
    return Ratio(seeds, geometric(exact) if exact and len(exact) == len(seeds) else None)


def _seed_ratio(run: Run, other: Run, target: float, unit: str, accounting: str, prices: Prices | None) -> SeedRatio:
    """A run that did not reach the target took more than all that it spent, where that is known."""
    mine, theirs = (to_target(each, target, unit, accounting, prices) for each in (run, other))
    if mine and theirs:
        usable = mine.cost > 0 and theirs.cost > 0
        return SeedRatio(run.seed, mine.cost / theirs.cost if usable else None, "exact" if usable else "unknown")
    missed = other if mine else run
    whole = cost(missed, missed.points[-1], unit, accounting, prices) if _missed(missed, target) else None
    if mine and whole:
        return SeedRatio(run.seed, mine.cost / whole, "at most")
    if theirs and whole and theirs.cost > 0:
        return SeedRatio(run.seed, whole / theirs.cost, "at least")
    return SeedRatio(run.seed, None, "unknown")


def _missed(run: Run, target: float) -> bool:
    return bool(run.points) and all(point.accuracy < target for point in run.points)


def account(runs: Sequence[Run], target: float, baseline: str, prices: Prices | None = None) -> dict[str, Any]:
    """Everything as JSON has it: per arm, accounting and unit the cost to `target`, the accuracy at equal budget (what
    the cheapest run spent in all), and the ratio to the arm `baseline`."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    rows = []
    for accounting in ACCOUNTINGS:
        for unit in units_of(prices):
            budget = _budget(runs, unit, accounting, prices)
            rows += [_row(name, arms, target, budget, baseline, unit, accounting, prices) for name in arms]
    return {"schema": 1, "target": target, "baseline": baseline, "interval": "Student's t, 95 %", "rows": rows}


def _budget(runs: Sequence[Run], unit: str, accounting: str, prices: Prices | None) -> float | None:
    """What the cheapest run spent in all; None where that of one is not known."""
    totals = [cost(run, run.points[-1], unit, accounting, prices) for run in runs if run.points]
    known = [total for total in totals if total is not None]
    return min(known) if known and len(known) == len(totals) else None


def _row(
    name: str,
    arms: Mapping[str, Sequence[Run]],
    target: float,
    budget: float | None,
    baseline: str,
    unit: str,
    accounting: str,
    prices: Prices | None,
) -> dict[str, Any]:
    runs = arms[name]
    reached = {run.seed: to_target(run, target, unit, accounting, prices) for run in runs}
    bought = {} if budget is None else {r.seed: at_budget(r, budget, unit, accounting, prices) for r in runs}
    costs = [each.cost for each in reached.values() if each]
    accuracies = [each.accuracy for each in bought.values() if each]
    compared = ratio(runs, arms.get(baseline, ()), target, unit, accounting, prices) if name != baseline else None
    return {
        "arm": name,
        "accounting": accounting,
        "unit": unit,
        "seeds": len(runs),
        "reached": sum(any(point.accuracy >= target for point in run.points) for run in runs),
        "cost": {str(seed): each and each.cost for seed, each in reached.items()},
        "cost_mean": vars(interval(costs)) if len(costs) == len(runs) else None,
        "budget": budget,
        "accuracy": {str(seed): each and each.accuracy for seed, each in bought.items()},
        "accuracy_mean": vars(interval(accuracies)) if accuracies and len(accuracies) == len(runs) else None,
        "ratio": None if compared is None or compared.interval is None else vars(compared.interval),
        "ratio_by_seed": [] if compared is None else [vars(each) for each in compared.seeds],
    }
