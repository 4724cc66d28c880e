"""Scales, ticks, and fewer points: the arithmetic of a chart."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BUCKETS = 240
"""Stretches of a line of which the smallest and the largest value are drawn."""
POINTS = 16_000
"""Of all lines of a chart together, about."""


@dataclass(frozen=True)
class Axis:
    """From values to [0, 1]."""

    low: float
    high: float
    log: bool = False

    def at(self, values: np.ndarray) -> np.ndarray:
        if self.log:
            return (np.log10(values) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (values - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers within it."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / most))
            return [10.0**power for power in range(first, last + 1, every)]
        step = round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `least`, > 0."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def axis_of(values: Sequence[np.ndarray], *, log: bool = False, zero: bool = False) -> Axis:
    """One that holds all values, from zero where that costs little or `zero` asks for it; wider than nothing."""
    found = np.concatenate([each for each in values if each.size] or [np.array([0.0, 1.0])])
    low, high = float(found.min()), float(found.max())
    if log:
        low, high = max(low, 1e-300), max(high, 1e-300)
        return Axis(low, high, log=True) if high > low * 1.01 else Axis(low / 2, high * 2, log=True)
    if zero or (low > 0 and low < 0.5 * high):
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        half = abs(high) * 0.1 or 1.0
        low, high = low - half, high + half
    return Axis(low, high)


def rounded(axis: Axis) -> Axis:
    """The axis from one tick to another one, so that its highest tick is its edge."""
    if axis.log:
        return axis
    step = round_step((axis.high - axis.low) / 5)
    return Axis(math.floor(axis.low / step + 1e-9) * step, math.ceil(axis.high / step - 1e-9) * step)


def buckets_for(lines: int) -> int:
    """Stretches a line of a chart with so many lines."""
    return max(24, min(BUCKETS, POINTS // (2 * max(1, lines))))


def kept_points(y: np.ndarray, buckets: int) -> np.ndarray:
    """Indices of the points to draw: the first, the last, and the smallest and largest of each stretch.

    All of them where there are at most two a bucket.
    """
    if len(y) <= 2 * buckets:
        return np.arange(len(y))
    edges = np.linspace(0, len(y), buckets + 1).astype(int)
    kept = {0, len(y) - 1}
    for start, end in itertools.pairwise(edges):
        kept |= {start + int(y[start:end].argmin()), start + int(y[start:end].argmax())}
    return np.array(sorted(kept))


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places of labels, moved apart until neighbours are `gap` from each other, within [low, high] where they fit."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = [min(max(place, low), high) for place in places]
    for _ in range(100):
        moved = False
        for before, after in itertools.pairwise(order):
            if (overlap := gap - (found[after] - found[before])) > 0.01:
                up = min(overlap / 2, found[before] - low)
                found[before] -= up
                found[after] += overlap - up
                moved = True
        for index in reversed(order):
            found[index] = min(found[index], high - gap * (len(order) - 1 - order.index(index)))
        if not moved:
            break
    return found
