"""Orders and batches: each sample once, whoever asks, however often."""

from __future__ import annotations

import numpy as np
import pytest

from galenic.core.errors import DataError
from galenic.core.sampling import EpochBatches, EpochSampler


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_processes_share_the_order_of_one(count: int, world: int, size: int) -> None:
    order = list(EpochSampler(count, 0))
    dealt = [list(EpochBatches(EpochSampler(count, 0), size, r, world)) for r in range(world)]
    assert len({len(batches) for batches in dealt}) == 1
    assert len(dealt[0]) == len(EpochBatches(EpochSampler(count, 0), size, 0, world))
    together = []
    for step in zip(*dealt, strict=True):
        assert len({len(batch) for batch in step}) == 1
        assert 1 <= len(step[0]) <= size
        together += [row for batch in step for row in batch]
    assert together[:count] == order
    # What is dealt out twice comes from the start of the epoch, and is less than one each.
    extra = together[count:]
    assert extra == [order[place % count] for place in range(len(extra))]
    assert len(extra) < world


def test_order_depends_on_seed_and_epoch_only() -> None:
    batches = EpochBatches(EpochSampler(30, 4, np.arange(1.0, 31)), 8)
    first = list(batches)
    np.random.seed(99)  # noqa: NPY002 - the point: the global state is not drawn from
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first
    batches.set_epoch(0)
    assert list(batches) == first
    assert list(EpochBatches(EpochSampler(30, 5, np.arange(1.0, 31)), 8)) != first


def test_a_weight_of_zero_is_never_drawn() -> None:
    weights = np.ones(20)
    weights[::2] = 0
    drawn = []
    sampler = EpochSampler(20, 0, weights)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    assert set(drawn) == set(range(1, 20, 2))
    assert weights.sum() == 10


@pytest.mark.parametrize(
    "weights", [np.ones(4), np.zeros(5), np.array([1, 1, 1, 1, np.nan]), -np.ones(5)]
)
def test_bad_weights_are_errors(weights: np.ndarray) -> None:
    with pytest.raises(DataError, match="weights"):
        EpochSampler(5, 0, weights)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("size", [1, 5, 6])
def test_groups_stand_side_by_side_in_every_batch(size: int, world: int) -> None:
    groups = np.array(["a"] * 3 + ["b"] * 20 + ["c"] * 41)
    for rank in range(world):
        order = EpochSampler(len(groups), 0, groups=groups)
        for batch in EpochBatches(order, size, rank, world):
            counts = [int((groups[batch] == name).sum()) for name in "abc"]
            assert max(counts) - min(counts) <= 1


def test_a_group_is_used_up_before_a_sample_comes_again() -> None:
    groups = np.array([0] * 4 + [1] * 16)
    sampler = EpochSampler(20, 1, groups=groups)
    first = list(sampler)
    small = [row for row in first if row < 4]
    assert len(first) == 20
    assert sorted(small[:4]) == [0, 1, 2, 3]
    assert sorted(small[4:8]) == [0, 1, 2, 3]
    large = [row for row in first if row >= 4]
    assert len(set(large)) == len(large)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_groups_must_be_one_a_sample() -> None:
    with pytest.raises(DataError, match="groups"):
        EpochSampler(5, 0, groups=np.zeros(4))
