"""Sparse convolution by dense emulation: the mask travels with one forward call.

The network is not touched. For the span of a forward call, in the calling thread alone, torch's
functions are answered by their sparse forms, so that any module that calls them is sparse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from galenic.core.errors import BackboneError

Function = Callable[..., Any]


class Sparse(TorchFunctionMode):
    """While entered, maps are zero outside the active cells, and nothing reads what is outside.

    After Tian et al., ICLR 2023, section 3.1. A map is a tensor [B, C, *S] (or [B, *S, C] for
    functions on the last axis) whose sides S are known. Convolutions keep the mask as it is, at
    each stride; poolings and norms see active positions only.

    Args:
        active: [B, 1, *G] bool, true where a cell is seen; equally many in each sample.
        sides: Sides of all maps, each a multiple of the grid's.

    Raises:
        BackboneError: From inside, for a function that is not known to keep positions apart.
    """

    def __init__(self, active: Tensor, sides: Iterable[tuple[int, ...]]) -> None:
        super().__init__()
        self.active = active
        self.sides = frozenset(sides)
        self._regions: dict[tuple[int, ...], Region] = {}

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """`func` in its sparse form."""
        from galenic.objectives.pretraining.spark.rules import RULES

        name = getattr(func, "__name__", str(func))
        rule = RULES.get(name)
        if rule is None:
            raise unknown(name)
        return rule(self, func, *args, **(kwargs or {}))

    def region(self, sides: Sequence[int]) -> Region | None:
        """Active positions of a map of these sides; None where they are the sides of no map."""
        sides = tuple(sides)
        if sides not in self.sides:
            return None
        if sides not in self._regions:
            mask, grid = self.active, self.active.shape[2:]
            for axis, (side, cells) in enumerate(zip(sides, grid, strict=True), start=2):
                mask = mask.repeat_interleave(side // cells, dim=axis)
            self._regions[sides] = Region(mask)
        return self._regions[sides]

    def first(self, x: Any) -> Region | None:
        """Active positions of a map with its channels first; None where `x` is no such map."""
        return self.region(x.shape[2:]) if isinstance(x, Tensor) else None

    def last(self, x: Any) -> Region | None:
        """Active positions of a map with its channels last; None where `x` is no such map."""
        return self.region(x.shape[1:-1]) if isinstance(x, Tensor) else None

    def mask(self, x: Any) -> Tensor | None:
        """Mask [B, 1, *S] or [B, *S, 1] of a map in whichever layout; None where `x` is no map.

        Raises:
            BackboneError: If both layouts fit.
        """
        first, last = self.first(x), self.last(x)
        if first is not None and last is not None:
            raise BackboneError(
                f"A tensor {tuple(x.shape)} may have its channels first or last: its mask is not "
                "known.",
                expected="a map with other sides than channels",
                next_step="Choose another input.size.",
            )
        if last is not None:
            return last.mask.movedim(1, -1)
        return None if first is None else first.mask


def unknown(name: str) -> BackboneError:
    """The error for a function without a sparse form."""
    return BackboneError(
        f"'spark' does not know how '{name}' is done on a sparse map; it may mix positions.",
        expected="a network of convolutions, poolings, norms and pointwise functions",
        next_step="Pre-train this network with `mae` or `moco`.",
    )


class Region:
    """Which positions of a map are active.

    Args:
        mask: [B, 1, *S] bool, true where a position is; equally many in each sample.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        flat = mask.flatten(2)
        self._places = flat.nonzero()[:, 2].view(len(flat), 1, -1)

    def pack(self, x: Tensor) -> Tensor:
        """Active positions [B, C, n] of a map [B, C, *S]."""
        return x.flatten(2).gather(2, self._places.expand(-1, x.shape[1], -1))

    def unpack(self, values: Tensor) -> Tensor:
        """The map [B, C, *S] of active positions [B, C, n], zero elsewhere."""
        whole: Tensor = _Unpack.apply(values, self._places, self.mask.shape[2:])
        return whole

    def erase(self, x: Tensor, *, last: bool = False) -> Tensor:
        """`x` itself, zero outside the active positions, whatever was there.

        Args:
            x: Map [B, C, *S] that nothing else needs.
            last: Whether its channels are last.
        """
        mask = self.mask.movedim(1, -1) if last else self.mask
        erased: Tensor = _Erase.apply(x, mask.to(_INTEGER[x.element_size()]).neg())
        return erased


_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Unpack(torch.autograd.Function):
    """A scatter whose result is no view: networks add to it in place, and autograd would copy."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, sides: Sequence[int]) -> Tensor:
        ctx.save_for_backward(places)
        whole = values.new_zeros(*values.shape[:2], *sides)
        whole.flatten(2).scatter_(2, places.expand_as(values), values)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (places,) = grads, ctx.saved_tensors
        return grad.flatten(2).gather(2, places.expand(-1, grad.shape[1], -1)), None, None


class _Erase(torch.autograd.Function):
    """`masked_fill_` by the bits of the numbers: as exact for NaN, and ten times as fast on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.bits = bits
        x.view(bits.dtype).bitwise_and_(bits)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return (grad.view(ctx.bits.dtype) & ctx.bits).view(grad.dtype), None
