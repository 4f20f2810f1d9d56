"""What one tensor of a delta is: a dense, a low-rank or a sparse difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from galenic.core.errors import WeightsError


@dataclass(frozen=True, eq=False)
class Dense:
    """A difference of every entry.

    Attributes:
        values: Of the tensor's shape.
    """

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.values.shape)

    def dense(self) -> Tensor:
        """The difference, written out."""
        return self.values


@dataclass(frozen=True, eq=False)
class LowRank:
    """A difference `scale * B A`, as LoRA has it; extra dimensions are folded into the columns.

    Attributes:
        b: [rows, r].
        a: [r, columns].
        scale: Factor of the product.
        shape: Of the tensor; its first dimension is `rows`.
    """

    b: Tensor
    a: Tensor
    scale: float
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The difference, written out."""
        return (self.scale * (self.b @ self.a)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Sparse:
    """A difference of a few entries.

    Attributes:
        index: int64 [k], flat places, ascending, each once.
        values: [k].
        shape: Of the tensor.
    """

    index: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The difference, written out."""
        flat = self.values.new_zeros(numel(self.shape))
        flat[self.index] = self.values
        return flat.reshape(self.shape)


Entry = Dense | LowRank | Sparse


def numel(shape: tuple[int, ...]) -> int:
    """Number of entries of a tensor of this shape."""
    count = 1
    for side in shape:
        count *= side
    return count


def difference(
    base: Tensor, tuned: Tensor, eps: float = 0.0, form: str = "auto", *, name: str = "tensor"
) -> Entry | None:
    """`tuned - base`, so that adding it to `base` gives `tuned`.

    The difference of two floats is not always a float: where adding it back would miss a bit,
    the tensor's differences are kept in float64. That is exact unless a weight shrank to less
    than a five-hundred-millionth of what it was.

    Args:
        base: Any shape and floating type.
        tuned: Of the same shape.
        eps: Differences up to this size are left out.
        form: `dense`, `sparse`, or `auto`: whichever is smaller on disk.
        name: What messages call the tensor.

    Returns:
        None where nothing is left.

    Raises:
        WeightsError: If a value changed from or to one that is not finite.
    """
    start, end = base.detach().reshape(-1), tuned.detach().reshape(-1)
    # Compared as values: two zeros of unlike sign differ by nothing.
    gap = _wide(end) - _wide(start)
    if not bool(gap.isfinite().all()):
        _require_finite(start, end, gap, name)
    index = (gap.abs() > eps).nonzero().squeeze(1)
    if not len(index):
        return None
    if form == "auto":
        # An index takes eight bytes beside each value.
        form = "sparse" if len(index) * (8 + gap.element_size()) < gap.nbytes else "dense"
    if form == "sparse":
        start, end, gap = start[index], end[index], gap[index]
    elif eps > 0:
        gap = torch.where(gap.abs() > eps, gap, 0)
        end = torch.where(gap == 0, start, end)
    if not torch.equal(plus(start, gap), end.to(start.dtype)):
        gap = end.double() - start.double()
    shape = tuple(base.shape)
    return Sparse(index, gap, shape) if form == "sparse" else Dense(gap.reshape(shape))


def _require_finite(start: Tensor, end: Tensor, gap: Tensor, name: str) -> None:
    """What stays as it is may be anything, such as the infinities of a mask."""
    same = (start == end) | (start.isnan() & end.isnan())
    count = int((~gap.isfinite() & ~same).sum())
    if count:
        raise WeightsError(
            f"'{name}' has {count} differences that are not finite.",
            expected="numbers before and after the training, without NaN or infinity",
            next_step="Train again with a smaller rate, or take an earlier checkpoint.",
        )


def plus(start: Tensor, gap: Tensor) -> Tensor:
    """`start + gap` in the wider type of both, float32 at least, rounded once to `start`'s."""
    wide = torch.promote_types(torch.promote_types(start.dtype, gap.dtype), torch.float32)
    return (start.to(wide) + gap.to(wide)).to(start.dtype)


def total(first: Entry, second: Entry) -> Entry:
    """The sum of two differences of one tensor, as compact as both allow."""
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        b = torch.cat([first.scale * first.b, second.scale * second.b], dim=1)
        return LowRank(b, torch.cat([first.a, second.a]), 1.0, first.shape)
    if isinstance(first, Sparse) and isinstance(second, Sparse):
        both = torch.cat([first.index, second.index])
        index, place = both.unique(return_inverse=True)
        kind = torch.promote_types(first.values.dtype, second.values.dtype)
        values = torch.zeros(len(index), dtype=kind, device=index.device)
        parts = (first.values, second.values)
        spots = place.split([len(part) for part in parts])
        for part, spot in zip(parts, spots, strict=True):
            values[spot] += part.to(kind)
        return Sparse(index, values, first.shape)
    left, right = first.dense(), second.dense()
    kind = torch.promote_types(left.dtype, right.dtype)
    return Dense(left.to(kind) + right.to(kind))


def scaled(entry: Entry, factor: float) -> Entry:
    """`factor` times a difference."""
    if isinstance(entry, LowRank):
        return LowRank(entry.b, entry.a, factor * entry.scale, entry.shape)
    if isinstance(entry, Sparse):
        return Sparse(entry.index, factor * entry.values, entry.shape)
    return Dense(factor * entry.values)


def piece(entry: Entry, start: int, stop: int) -> Tensor:
    """Flat differences [start, stop), without writing out the rest."""
    if isinstance(entry, Dense):
        return entry.values.reshape(-1)[start:stop]
    if isinstance(entry, LowRank):
        width = entry.a.shape[1]
        top, bottom = start // width, -(-stop // width)
        rows = (entry.scale * (entry.b[top:bottom] @ entry.a)).reshape(-1)
        return rows[start - top * width : stop - top * width]
    ends = torch.tensor([start, stop], device=entry.index.device)
    first, last = torch.searchsorted(entry.index, ends).tolist()
    flat = entry.values.new_zeros(stop - start)
    flat[entry.index[first:last] - start] = entry.values[first:last]
    return flat


def places(entry: Entry) -> Tensor:
    """Flat places [k] of the entries that are not zero, ascending."""
    if isinstance(entry, Sparse):
        return entry.index[entry.values != 0]
    return entry.dense().reshape(-1).nonzero().squeeze(1)


def at(entry: Entry, index: Tensor) -> Tensor:
    """Differences [k] at flat places that `entry` has."""
    if isinstance(entry, Sparse):
        return entry.values[torch.searchsorted(entry.index, index)]
    return entry.dense().reshape(-1)[index]


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
