"""One tensor of a merge: its parents, read piece by piece into buffers that are used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from galenic.merging.selection import Array
from galenic.merging.sources import Source, size_of, spans, working

# Of a batch norm: what it has seen, and not what it has learnt.
_STATISTICS = ("running_mean", "running_var")


@dataclass
class Job:
    """A tensor and its parents, all of one shape.

    Attributes:
        name: Of the tensor.
        base: The tensor of the base, or of the first model where there is no base.
        parents: Of the models, in an order that does not depend on the recipe's.
        keys: Names of the models: what is drawn for one depends on its name, not on its place.
        drawn_as: The name that draws go by; tied tensors share one, and so stay tied.
        kept: Entries of each task vector that were kept, filled in by the method.
        squares: Sum of squares of each task vector before and after, filled in by the method.
        averaged: Whether it took the mean of the task vectors instead, filled in by the method.
    """

    name: str
    base: Source
    parents: tuple[Source, ...]
    keys: tuple[str, ...]
    drawn_as: str = ""
    kept: list[int | None] = field(default_factory=list)
    squares: list[tuple[float, float] | None] = field(default_factory=list)
    averaged: bool = False

    def __post_init__(self) -> None:
        self.drawn_as = self.drawn_as or self.name
        self.kept = [None] * len(self.parents)
        self.squares = [None] * len(self.parents)
        self.size = size_of(self.base)
        self.dtype = working(self.base.dtype, *(parent.dtype for parent in self.parents))

    @property
    def row(self) -> int:
        """Entries of a row of the last dimension, one at least."""
        return max(self.base.shape[-1], 1) if self.base.shape else 1

    @property
    def statistic(self) -> bool:
        """Whether it is a running mean or variance."""
        return self.name.rpartition(".")[2] in _STATISTICS

    def read(self, source: Source, start: int, stop: int, into: Tensor) -> Tensor:
        """Entries [start, stop) in the working type; `into` is overwritten."""
        found = into[: stop - start]
        found.copy_(source.flat(start, stop))
        return found

    def delta(self, index: int, start: int, stop: int, base: Tensor, into: Tensor) -> Tensor:
        """The same of a task vector, given these entries of the base."""
        return self.read(self.parents[index], start, stop, into).sub_(base)

    def buffer(self, row: int = 1) -> Tensor:
        """Room for one piece in the working type."""
        longest = max((stop - start for start, stop in spans(self.size, row)), default=0)
        return torch.empty(longest, dtype=self.dtype)

    def magnitudes(self, index: int) -> Callable[[], Iterator[Array]]:
        """Gives the magnitudes of a task vector, piece by piece."""
        base, delta = self.buffer(), self.buffer()

        def pieces() -> Iterator[Array]:
            for start, stop in spans(self.size):
                old = self.read(self.base, start, stop, base)
                yield self.delta(index, start, stop, old, delta).abs_().numpy()

        return pieces

    def sample(self, index: int, step: int) -> Array:
        """Every `step`-th magnitude of a task vector."""
        parts = []
        for start, stop in spans(self.size):
            # Where the walk over the whole tensor comes to within this piece.
            offset = -start % step
            old = self.base.flat(start, stop)[offset::step].to(self.dtype)
            new = self.parents[index].flat(start, stop)[offset::step].to(self.dtype)
            parts.append((new - old).abs_().numpy())
        return np.concatenate(parts) if parts else np.empty(0, np.float32)
