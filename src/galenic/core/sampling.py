"""The order of training samples: a function of seed and epoch, of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from galenic.core.errors import DataError
from galenic.core.seeding import rng

Array = np.ndarray[Any, np.dtype[Any]]


# Batches that are sorted together: enough to find like sizes, few enough to stay random.
POOL = 16


class EpochSampler(Sampler[int]):
    """A permutation, or weighted draws with replacement, or groups in turn, afresh each epoch.

    Args:
        count: Number of samples.
        seed: Of the order.
        weights: Relative chance of each sample; None for every sample once.
        lengths: Size of each sample; batches are then made of samples of like size, which
            spares padding. None for batches by chance alone.
        batch_size: Samples a batch, for `lengths`.
        groups: Group of each sample; any run of the order, so any batch, then holds all groups
            in equal share, to within one sample. Comes before `weights` and `lengths`.

    Raises:
        DataError: If the weights are not one finite number >= 0 a sample, or all are zero, or
            groups are not one a sample.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        weights: Array | None = None,
        lengths: Array | None = None,
        batch_size: int = 1,
        groups: Array | None = None,
    ) -> None:
        if groups is not None and np.shape(groups) != (count,):
            raise DataError(
                f"There are sample groups of shape {np.shape(groups)} for {count} samples.",
                expected="one group a sample",
            )
        self.count = count
        self.seed = seed
        self.epoch = 0
        self.chances = None if weights is None else _chances(weights, count)
        self.lengths = lengths
        self.batch_size = batch_size
        self.groups = groups

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        draw = rng(self.seed, "order", str(self.epoch))
        if self.groups is not None:
            return iter(_in_turn(self.groups, draw).tolist())
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


class EpochBatches(Sampler[list[int]]):
    """Batches of one process out of the order of all: together the processes see each sample.

    The last batch of an epoch may be short; where it cannot be dealt out evenly, samples from
    the start of the epoch fill it up.

    Args:
        order: The order of the epoch, the same in every process.
        batch_size: Samples a batch and process.
        rank: Which process this is.
        world: How many processes there are.
    """

    def __init__(self, order: EpochSampler, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.order, self.batch_size = order, batch_size
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-len(self.order) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        whole = self.batch_size * self.world
        for start in range(0, len(order), whole):
            batch = order[start : start + whole]
            short = -len(batch) % self.world
            batch += [order[place % len(order)] for place in range(short)]
            share = len(batch) // self.world
            yield batch[self.rank * share : (self.rank + 1) * share]

    def set_epoch(self, epoch: int) -> None:
        """Draw another order from now on."""
        self.order.set_epoch(epoch)


def _chances(weights: Array, count: int) -> Array:
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (count,):
        raise DataError(
            f"There are sample weights of shape {values.shape} for {count} samples.",
            expected="one weight a sample",
        )
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise DataError(
            "The sample weights cannot be drawn by.",
            expected="finite numbers >= 0, at least one of them above 0",
        )
    return values / values.sum()


def _in_turn(groups: Array, draw: np.random.Generator) -> Array:
    """As many samples as there are, one group after the other.

    A group is gone through in random order, and again in another one when it is used up.
    """
    codes, place = np.unique(groups, return_inverse=True)
    turns = -(-len(groups) // len(codes))
    columns = []
    for code in range(len(codes)):
        rows = np.flatnonzero(place == code)
        rounds = [draw.permutation(rows) for _ in range(-(-turns // len(rows)))]
        columns.append(np.concatenate(rounds)[:turns])
    order: Array = np.stack([columns[code] for code in draw.permutation(len(codes))], axis=1)
    return order.ravel()[: len(groups)]


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
