"""The first k entries by magnitude, exactly, without a sort and without holding the tensor.

The k-th magnitude is bracketed by a sample; one pass counts what lies above the bracket and
gathers what lies inside, and the k-th is chosen among these. Of equal magnitudes the one with the
lower index comes first, so that exactly k are taken whatever the ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Pieces = Callable[[], Iterable[Array]]
Sample = Callable[[int], Array]
# At least so many entries are sampled, and of more than 2^23 one in 256.
_SAMPLE, _SHARE, _MOST = 1 << 15, 256, 1 << 22
# Fewer entries than this are gathered and partitioned at once.
_SMALL = 1 << 16


@dataclass(frozen=True)
class Cut:
    """The first entries of a tensor by magnitude: all above `value`, and `ties` equal to it.

    Attributes:
        value: The last magnitude that is taken.
        ties: How many entries of just this magnitude are taken, lowest indices first.
        equal: How many there are.
    """

    value: float
    ties: int
    equal: int


NOTHING, EVERYTHING = Cut(math.inf, 0, 0), Cut(-1.0, 0, 0)


class Taker:
    """Tells, piece by piece in order, which entries a cut takes."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._left = cut.ties

    def take(self, magnitudes: Array) -> Array:
        """Boolean mask of the next piece.

        Args:
            magnitudes: [n], non-negative.
        """
        cut = self._cut
        if cut.ties == cut.equal:
            return magnitudes >= cut.value if cut.equal else magnitudes > cut.value
        taken: Array = magnitudes > cut.value
        if self._left:
            places = np.flatnonzero(magnitudes == cut.value)[: self._left]
            taken[places] = True
            self._left -= len(places)
        return taken


def cuts(
    pieces: Pieces, count: int, ranks: Sequence[int], sample: Sample | None = None
) -> list[Cut]:
    """For each rank r, the cut that takes the first r entries.

    Args:
        pieces: Gives the magnitudes, piece by piece in order; called up to four times. A piece
            may be overwritten once the next is asked for.
        count: Number of entries in all.
        ranks: Each from 0 to `count`; outside of that, nothing or everything.
        sample: Gives every so-manieth magnitude, more cheaply than `pieces` would.
    """
    inner = sorted({rank for rank in ranks if 0 < rank < count})
    found = {rank: NOTHING if rank <= 0 else EVERYTHING for rank in ranks}
    if inner:
        solved = (
            _small(pieces, inner)
            if count <= _SMALL
            else _large(pieces, count, inner, sample or _strided(pieces))
        )
        found.update(solved)
    return [found[rank] for rank in ranks]


def _small(pieces: Pieces, ranks: Sequence[int]) -> dict[int, Cut]:
    values = np.concatenate([np.array(piece) for piece in pieces()])
    return {rank: _among(values, rank, 0) for rank in ranks}


def _among(values: Array, rank: int, above: int) -> Cut:
    """The cut of `rank` among `values`, with `above` larger ones that are not among them."""
    place = len(values) - (rank - above)
    value = np.partition(values, place)[place]
    larger = int(np.count_nonzero(values > value))
    equal = int(np.count_nonzero(values == value))
    return Cut(float(value), rank - above - larger, equal)


def _large(pieces: Pieces, count: int, ranks: Sequence[int], draw: Sample) -> dict[int, Cut]:
    wanted = min(max(_SAMPLE, count // _SHARE), _MOST)
    # Odd, so that it walks through the columns of a tensor whose rows are a power of two.
    sample = np.sort(draw(max(count // wanted, 1) | 1))[::-1]
    found: dict[int, Cut] = {}
    for margin in (1.0, 8.0, math.inf):
        open_ranks = [rank for rank in ranks if rank not in found]
        if not open_ranks:
            break
        brackets = [_Bracket(rank, *_bounds(sample, rank / count, margin)) for rank in open_ranks]
        for piece in pieces():
            for bracket in brackets:
                bracket.see(piece)
        for bracket in brackets:
            cut = bracket.solve()
            if cut is not None:
                found[bracket.rank] = cut
    return found


def _strided(pieces: Pieces) -> Sample:
    return lambda step: np.concatenate([piece[::step] for piece in pieces()])


def _bounds(sample: Array, share: float, margin: float) -> tuple[float, float]:
    """(low, high) between which the value at `share` from the top lies, most likely."""
    size = len(sample)
    spread = margin * (5 * math.sqrt(size * share * (1 - share)) + 5)
    first, last = size * share - spread, size * share + spread
    high = float(sample[int(first)]) if first >= 0 else math.inf
    low = float(sample[int(last)]) if last < size - 1 else 0.0
    return low, high


class _Bracket:
    """Counts above a bracket and at its ends, and gathers what lies strictly inside."""

    def __init__(self, rank: int, low: float, high: float) -> None:
        self.rank, self.low, self.high = rank, low, high
        self._above = self._at_high = self._at_low = 0
        self._inside: list[Array] = []

    def see(self, piece: Array) -> None:
        from_high = piece >= self.high
        above = int(np.count_nonzero(piece > self.high))
        self._above += above
        self._at_high += int(np.count_nonzero(from_high)) - above
        if self.low == self.high:
            return
        inside = piece > self.low
        beyond = int(np.count_nonzero(inside))
        self._at_low += int(np.count_nonzero(piece >= self.low)) - beyond
        # What is from the high end on is above the low end too.
        inside ^= from_high
        # Few are inside: their places are found faster than a mask is applied.
        self._inside.append(piece[np.flatnonzero(inside)])

    def solve(self) -> Cut | None:
        """The cut, or None where the k-th lies outside the bracket."""
        left = self.rank - self._above
        if left <= 0:
            return None
        if left <= self._at_high:
            return Cut(self.high, left, self._at_high)
        inside = np.concatenate(self._inside) if self._inside else np.empty(0, np.float32)
        above = self._above + self._at_high
        if self.rank - above <= len(inside):
            return _among(inside, self.rank, above)
        left = self.rank - above - len(inside)
        return Cut(self.low, left, self._at_low) if left <= self._at_low else None
