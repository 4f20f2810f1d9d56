"""The order of training samples: a function of seed and epoch, of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from galenic.core.seeding import rng

Array = np.ndarray[Any, np.dtype[Any]]


class EpochSampler(Sampler[int]):
    """A permutation, or weighted draws with replacement, afresh each epoch.

    Args:
        count: Number of samples.
        seed: Of the order.
        weights: Relative chance of each sample; None for every sample once.
    """

    def __init__(self, count: int, seed: int, weights: Array | None = None) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0
        self.chances = None if weights is None else weights / weights.sum()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        draw = rng(self.seed, "order", str(self.epoch))
        if self.chances is None:
            order = draw.permutation(self.count)
        else:
            order = draw.choice(self.count, self.count, p=self.chances)
        return iter(order.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Draw another order from now on."""
        self.epoch = epoch
