"""A sum tree over slots: draws a slot in proportion to its value; setting and drawing take O(log n) each.

Written here and not taken from a library: `cpprb`, the one that fits verl 0.9.1, is a compiled package whose buffer
owns the rows too, and what is needed of it is this file.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class SumTree:
    """Values >= 0 of `size` slots, all 0 at first, and their sums.

    A node's sum is that of its two children, whenever one of them is set: nothing drifts, whatever was set before.
    """

    def __init__(self, size: int) -> None:
        self._leaves = 1 << max(0, size - 1).bit_length()
        self._nodes = np.zeros(2 * self._leaves)
        self.size = size

    @property
    def total(self) -> float:
        return float(self._nodes[1])

    @property
    def nbytes(self) -> int:
        return self._nodes.nbytes

    def __getitem__(self, slots: Integers) -> Floats:
        return self._nodes[self._leaves + slots]

    def set(self, slots: Integers, values: Floats | float) -> None:
        """Give slots their values; of a slot that is named twice, the last one holds."""
        nodes = self._leaves + slots
        self._nodes[nodes] = values
        while self._leaves > 1 and len(nodes) and nodes[0] > 1:
            nodes = nodes // 2
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def fill(self, slots: Integers, values: Floats) -> None:
        """Give these slots their values and all others 0, in O(size)."""
        self._nodes[:] = 0.0
        self._nodes[self._leaves + slots] = values
        first = self._leaves
        while first > 1:
            pairs = self._nodes[first : 2 * first]
            self._nodes[first // 2 : first] = pairs[::2] + pairs[1::2]
            first //= 2

    def draw(self, count: int, generator: np.random.Generator) -> Integers:
        """`count` slots, stratified: one from each of `count` equal parts of the total (arXiv 1511.05952, B.2.1).

        Slot i is drawn count * P(i) times in expectation, as by independent draws, and with less variance. No slot of
        value 0 is ever drawn.

        Raises:
            ValueError: if every value is 0.
        """
        if self.total <= 0.0:
            raise ValueError("nothing to draw: every value is 0")
        left = (np.arange(count) + generator.random(count)) * (self.total / max(count, 1))
        nodes = np.ones(count, dtype=np.int64)
        while len(nodes) and nodes[0] < self._leaves:
            nodes = 2 * nodes
            below = self._nodes[nodes]
            # Rounding may leave as much as the left sum; where the right one is empty there is nothing to find there.
            right = (left >= below) & (self._nodes[nodes + 1] > 0.0)
            left = np.where(right, left - below, left)
            nodes += right
        return nodes - self._leaves
