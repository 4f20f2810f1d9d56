"""Tensors that are read piece by piece: those of a mapped file, or those in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

# float32 values of this many entries, for a handful of parents, stay in a processor's cache.
BLOCK = 1 << 19


class Source(Protocol):
    """A tensor whose entries are given in the order of its flat places."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """As it is stored."""

    def flat(self, start: int, stop: int) -> Tensor:
        """Entries [start, stop) as a flat tensor, not to be written to."""


class Weights(Protocol):
    """Named tensors that are read piece by piece, with what a report says of them.

    Attributes:
        label: What messages call it.
    """

    label: str

    def names(self) -> list[str]:
        """In the order in which they are stored."""

    def source(self, name: str) -> Source:
        """One of them."""


class Held:
    """A tensor in memory as a source."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self._flat: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.tensor.dtype

    def flat(self, start: int, stop: int) -> Tensor:
        """Entries [start, stop)."""
        if self._flat is None:
            self._flat = self.tensor.cpu().reshape(-1)
        return self._flat[start:stop]


class State:
    """A state dict in memory as weights."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        self.tensors = tensors
        self.label = label

    def names(self) -> list[str]:
        """In the order of the mapping."""
        return list(self.tensors)

    def source(self, name: str) -> Source:
        """One tensor."""
        return Held(self.tensors[name])


def close(*sources: Source) -> None:
    """Let go of what was read; tensors in memory stay."""
    for source in sources:
        give_back = getattr(source, "close", None)
        if give_back is not None:
            give_back()


def size_of(source: Source) -> int:
    """Number of entries; 1 for a scalar."""
    return math.prod(source.shape)


def spans(count: int, row: int = 1) -> Iterator[tuple[int, int]]:
    """Pieces [start, stop) of `count` entries, each of whole rows of `row` entries."""
    step = max(BLOCK // row, 1) * row
    for start in range(0, count, step):
        yield start, min(start + step, count)


def working(*dtypes: torch.dtype) -> torch.dtype:
    """The type that tensors of `dtypes` are merged in: float64 where one has it, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32
