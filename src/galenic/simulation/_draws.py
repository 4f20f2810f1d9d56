"""Random numbers that an agent carries with it: no run depends on how many others there are.

Every agent holds a 64-bit key. A step of a linear congruential generator moves it on, a mixing
(Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014) makes a child's key.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from galenic.core.seeding import stream

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def advance(keys: Tensor) -> Tensor:
    """The next key of every agent, int64 [n]."""
    return keys * _MULTIPLIER + _INCREMENT


def mix(keys: Tensor) -> Tensor:
    """Keys [n] that have nothing in common with `keys`."""
    for shift, factor in _MIX:
        keys = (keys ^ _right(keys, shift)) * factor
    return keys ^ _right(keys, 31)


def root(seeds: Sequence[int], name: str) -> Tensor:
    """One key a run, int64 [runs], for the stream `name`."""
    return torch.tensor([stream(seed, name) for seed in seeds], dtype=torch.int64)


def spread(roots: Tensor, count: int) -> Tensor:
    """Keys [runs, count] below the keys [runs]."""
    return mix(roots[:, None] + _GOLDEN * torch.arange(1, count + 1))


def turn(keys: Tensor) -> Tensor:
    """-1 and 1 with probability 1/8 each, else 0, from the first three bits of keys [n]."""
    bits = (keys >> 61) & 7
    return (bits == 0).long() - (bits == 1).long()


def chance(keys: Tensor, p: float) -> Tensor:
    """True with probability `p`, from the next 24 bits of keys [n]."""
    return ((keys >> 37) & 0xFFFFFF) < round(p * (1 << 24))


def order(keys: Tensor) -> Tensor:
    """A random order of keys [n]: the bits that neither of the others uses come first."""
    return (keys << 27) | _right(keys, 37)


def uniform(keys: Tensor) -> Tensor:
    """Uniform on [0, 1), float64, of mixed keys."""
    return _right(keys, 11).double() / (1 << 53)


def below(keys: Tensor, n: int) -> Tensor:
    """Uniform integers 0 .. n - 1 of mixed keys, int64."""
    return (uniform(keys) * n).long()


def chosen(keys: Tensor, group: Tensor, counts: Tensor) -> Tensor:
    """Of each group, so many members at random.

    Args:
        keys: Of the members [n].
        group: 0 .. groups - 1 of each member [n].
        counts: How many to choose [groups], at most the size of the group.

    Returns:
        True where chosen [n].
    """
    # Two stable sorts: by key, then by group.
    placed = torch.argsort(keys, stable=True)
    placed = placed[torch.argsort(group[placed], stable=True)]
    sizes = torch.bincount(group, minlength=len(counts))
    first = torch.cumsum(sizes, 0) - sizes
    sorted_group = group[placed]
    rank = torch.arange(len(keys)) - first[sorted_group]
    taken = torch.zeros(len(keys), dtype=torch.bool)
    taken[placed] = rank < counts[sorted_group]
    return taken


def _right(keys: Tensor, places: int) -> Tensor:
    """Shift to the right without the sign."""
    return (keys >> places) & ((1 << (64 - places)) - 1)
