"""Which rows make which batch: Tinker's order, and a loader that resumes at the very batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Row numbers in the order of `epoch` (from 0): a fixed shuffle by `seed`, then one of that by the epoch's number.

    As tinker-cookbook's `FromConversationFileBuilder` and `SupervisedDatasetFromHFDataset.set_epoch` do it.
    """
    fixed = np.random.default_rng(seed).permutation(rows)
    return fixed[np.random.default_rng(epoch).permutation(rows)]


class TinkerBatches(Sampler[list[int]]):
    """One rank's share of each global batch; the rows after the last full batch of an epoch are dropped."""

    def __init__(self, rows: int, batch_size: int, seed: int, rank: int, ranks: int) -> None:
        if batch_size % ranks:
            raise ValueError(f"data.train_batch_size={batch_size} must be a multiple of the {ranks} ranks")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.epoch = 0
        self.first = 0
        """Batch that the next pass starts at; above 0 only in the pass that resumes."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.rows, self.seed, self.epoch)
        first, self.first = self.first, 0
        for batch in range(first, len(self)):
            mine = order[batch * self.batch_size : (batch + 1) * self.batch_size][self.rank :: self.ranks]
            yield mine.tolist()


class ResumingLoader(DataLoader):
    """A loader whose state is the number of batches it has delivered.

    torchdata's loader saves a finished epoch as finished: resumed there, verl's `fit` would skip the whole next one.
    """

    def __init__(self, dataset: Any, batches: TinkerBatches, **kwargs: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **kwargs)
        self.batches = batches
        self.delivered = 0

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  torch wants its own class
        for batch in super().__iter__():
            self.delivered += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"delivered": self.delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.delivered = state["delivered"]
        self.batches.first = self.delivered % len(self.batches)
