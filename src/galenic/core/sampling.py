"""The order of training samples: a function of seed and epoch, of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from galenic.core.seeding import rng

Array = np.ndarray[Any, np.dtype[Any]]


# Batches that are sorted together: enough to find like sizes, few enough to stay random.
POOL = 16


class EpochSampler(Sampler[int]):
    """A permutation, or weighted draws with replacement, afresh each epoch.

    Args:
        count: Number of samples.
        seed: Of the order.
        weights: Relative chance of each sample; None for every sample once.
        lengths: Size of each sample; batches are then made of samples of like size, which
            spares padding. None for batches by chance alone.
        batch_size: Samples a batch, for `lengths`.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        weights: Array | None = None,
        lengths: Array | None = None,
        batch_size: int = 1,
    ) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0
        self.chances = None if weights is None else weights / weights.sum()
        self.lengths = lengths
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        draw = rng(self.seed, "order", str(self.epoch))
        if self.chances is None:
            order = draw.permutation(self.count)
        else:
            order = draw.choice(self.count, self.count, p=self.chances)
        if self.lengths is not None:
            order = _bucketed(order, self.lengths, self.batch_size, draw)
        return iter(order.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Draw another order from now on."""
        self.epoch = epoch


def _bucketed(order: Array, lengths: Array, batch_size: int, draw: np.random.Generator) -> Array:
    """The same samples, pool by pool in batches of like size, the batches in random order."""
    pool = POOL * batch_size
    batches: list[Array] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size]
    rest = [batch for batch in batches if len(batch) < batch_size]
    # Short batches go last: in the middle they would shift the edges of all that follow.
    shuffled = [whole[place] for place in draw.permutation(len(whole))]
    return np.concatenate([*shuffled, *rest])
