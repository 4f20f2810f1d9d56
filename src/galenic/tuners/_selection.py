"""The k largest or smallest of all entries of many tensors, by one threshold, without ties.

Found digit by digit: the bits of a non-negative float, read as an integer, keep its order, so
that counting 16 bits at a time gives the exact k-th value in two passes (four for float64). A
block of one tensor is looked at at a time and nothing is sorted: beyond the scores of one tensor
and the places that are chosen, memory does not grow with the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_DIGIT = 16
_BLOCK = 1 << 20
Score = Callable[[], Tensor]


@dataclass(frozen=True)
class Chosen:
    """Which entries were taken.

    Attributes:
        index: int64 [k_i], flat places, ascending, of each tensor that has some.
        threshold: The score of the last one taken; 0 where none was.
    """

    index: Mapping[str, Tensor]
    threshold: float

    @property
    def count(self) -> int:
        """Entries in all."""
        return sum(len(index) for index in self.index.values())


def select(
    scores: Mapping[str, Score],
    k: int,
    *,
    largest: bool = True,
    allowed: Mapping[str, Tensor] | None = None,
    drop_zeros: bool = True,
) -> Chosen:
    """Take k entries of all tensors together.

    Of entries with equal scores the first is taken, in the order of the names and then of the
    flat places: exactly k are taken, or all that may be.

    Args:
        scores: Give non-negative scores of any shape, by name; each is called a few times, and
            only one at a time is held.
        k: How many.
        largest: Take the largest, or the smallest.
        allowed: Boolean masks of the same shapes; what is False, or a name that is not there
            where there is a mask at all, is not taken.
        drop_zeros: Never take an entry whose score is zero.

    Raises:
        ValueError: If a score is not finite; names the tensor.
    """
    if k <= 0:
        return Chosen({}, 0.0)
    width = 32
    for name, score in scores.items():
        value = score()
        if value.dtype == torch.float64:
            width = 64
        if value.numel() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"the scores of '{name}' are not all finite")

    # The zeros are last in line of the largest: a smaller k leaves them out by itself.
    skip = drop_zeros and not largest

    def keys() -> Iterable[tuple[str, int, Tensor | None, Tensor]]:
        """Name, start of a block, places in it that may be taken (None: all), their keys."""
        for name, score in scores.items():
            if allowed is not None and name not in allowed:
                continue
            flat = score().reshape(-1)
            mask = None if allowed is None else allowed[name].reshape(-1)
            for start in range(0, len(flat), _BLOCK):
                block = flat[start : start + _BLOCK]
                free = None if mask is None else mask[start : start + _BLOCK]
                if skip:
                    free = block != 0 if free is None else free & (block != 0)
                if free is None:
                    yield name, start, None, _key(block, width, largest)
                else:
                    places = free.nonzero().squeeze(1)
                    yield name, start, places, _key(block[places], width, largest)

    zero = drop_zeros and largest
    count = sum(int(key.count_nonzero()) if zero else len(key) for *_, key in keys())
    k = min(k, count)
    if k == 0:
        return Chosen({}, 0.0)
    last, above = _kth_largest(lambda: (key for *_, key in keys()), k, width)
    ties = k - above
    parts: dict[str, list[Tensor]] = {}
    for name, start, places, key in keys():
        taken = key > last
        if ties:
            equal = (key == last).nonzero().squeeze(1)[:ties]
            ties -= len(equal)
            taken[equal] = True
        found = taken.nonzero().squeeze(1)
        if len(found):
            found = found if places is None else places[found]
            parts.setdefault(name, []).append(found + start)
    chosen = {name: torch.cat(pieces) for name, pieces in parts.items()}
    return Chosen(chosen, _score(last, width, largest))


def _kth_largest(keys: Callable[[], Iterable[Tensor]], k: int, width: int) -> tuple[int, int]:
    """The k-th largest key, and how many keys are larger."""
    prefix, above = 0, 0
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts: Tensor | None = None
        for key in keys():
            if shift + _DIGIT < width:
                key = key[(key >> (shift + _DIGIT)) == (prefix >> (shift + _DIGIT))]
            digit = (key >> shift) & ((1 << _DIGIT) - 1)
            found = torch.bincount(digit, minlength=1 << _DIGIT).cpu()
            counts = found if counts is None else counts + found
        assert counts is not None
        # From the top: how many keys have this digit or a larger one.
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit_k = int((at_least >= k - above).nonzero().max())
        above += int(at_least[digit_k] - counts[digit_k])
        prefix |= digit_k << shift
    return prefix, above


def _key(scores: Tensor, width: int, largest: bool) -> Tensor:
    """int64 keys whose order is that of the scores, or the reverse."""
    scores = scores.abs()  # a negative zero has its sign in the highest bit
    if width == 64:
        bits = scores.double().view(torch.int64)
        top = (1 << 63) - 1
    else:
        bits = scores.float().view(torch.int32).long()
        top = (1 << 31) - 1
    return bits if largest else top - bits


def _score(key: int, width: int, largest: bool) -> float:
    top = (1 << (width - 1)) - 1
    bits = key if largest else top - key
    kind, whole = (torch.float64, torch.int64) if width == 64 else (torch.float32, torch.int32)
    return float(torch.tensor(bits, dtype=whole).view(kind))
