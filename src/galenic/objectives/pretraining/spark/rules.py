"""The sparse form of every function that a convolutional network is known to call.

A rule is called as `rule(sparse, func, *args)` with torch's own arguments. What has no rule is
refused: a function that mixes positions must not pass unseen.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from galenic.core.errors import BackboneError, DataError
from galenic.objectives.pretraining.spark.sparse import Function, Sparse, unknown


def keep(sparse: Sparse, func: Function, *args: Any, **kwargs: Any) -> Any:
    """Position by position, and zero stays zero."""
    return func(*args, **kwargs)


def erase(sparse: Sparse, func: Function, *args: Any, **kwargs: Any) -> Any:
    """Position by position, but zero does not stay zero."""
    out = func(*args, **kwargs)
    mask = sparse.mask(out)
    return out if mask is None else out.masked_fill(~mask, 0)


def add(sparse: Sparse, func: Function, x: Any, other: Any, **kwargs: Any) -> Any:
    """A sum; what is added to a map may be no map (a bias), and would leak."""
    out = func(x, other, **kwargs)
    shapes = [value.shape if isinstance(value, Tensor) else () for value in (x, other)]
    if shapes[0] == shapes[1]:
        return out
    mask = sparse.mask(out)
    # In place: `out` may be `x` itself, and a sum keeps nothing of its result for the gradient.
    return out if mask is None else out.masked_fill_(~mask, 0)


def hardtanh(
    sparse: Sparse,
    func: Function,
    x: Tensor,
    low: float = -1,
    high: float = 1,
    *rest: Any,
    **kw: Any,
) -> Any:
    """A clamp."""
    low, high = kw.pop("min_val", low), kw.pop("max_val", high)
    rule = keep if low <= 0 <= high else erase
    return rule(sparse, func, x, low, high, *rest, **kw)


def pad(
    sparse: Sparse, func: Function, x: Tensor, pad: Any, mode: str = "constant", value: Any = None
) -> Tensor:
    """Zeros around a map."""
    if mode != "constant" or value:
        raise unknown(f"pad of {mode if mode != 'constant' else value}")
    return func(x, pad)


def cat(sparse: Sparse, func: Function, tensors: Any, dim: int = 0) -> Tensor:
    """Side by side along the channels."""
    if dim != 1:
        raise unknown(f"cat along axis {dim}")
    return func(tensors, dim)


def convolution(sparse: Sparse, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A convolution whose result exists at active positions only: the mask does not grow."""
    out: Tensor = func(x, *args, **kwargs)
    region = sparse.first(out)
    if region is not None:
        # In place: a convolution keeps nothing of its result for the gradient.
        return region.erase(out)
    if math.prod(out.shape[2:]) > 1:
        raise BackboneError(
            f"A convolution gives a map of {tuple(out.shape[2:])} from one of "
            f"{tuple(x.shape[2:])}: the cells of the mask do not fit it.",
            expected=f"one of {sorted(sparse.sides)}",
            next_step="Choose an input.size that is a multiple of the network's stride.",
        )
    return out


def linear(sparse: Sparse, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A layer on the last axis."""
    region = sparse.last(x)
    if region is None:
        _require_vector(x, func)
        return func(x, *args, **kwargs)
    return region.erase(func(x, *args, **kwargs), last=True)


def layer_norm(
    sparse: Sparse, func: Function, x: Tensor, normalized_shape: Any, *args: Any, **kwargs: Any
) -> Tensor:
    """A norm of each position's channels."""
    if len(normalized_shape) > 1:
        raise unknown(f"layer_norm over {len(normalized_shape)} axes")
    return linear(sparse, func, x, normalized_shape, *args, **kwargs)


def batch_norm(
    sparse: Sparse,
    func: Function,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Statistics of the active positions."""
    state = (running_mean, running_var, weight, bias, training, momentum, eps)
    region = sparse.first(x)
    if region is None:
        return func(x, *state)
    if not training:
        return region.erase(func(x, *state))
    active = region.pack(x)
    _require_two(active.numel() // active.shape[1], "the whole batch")
    return region.unpack(func(active, *state))


def sample_norm(sparse: Sparse, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Statistics of a sample's active positions, by channel or by group of channels."""
    region = sparse.first(x)
    if region is None:
        return func(x, *args, **kwargs)
    active = region.pack(x)
    _require_two(active.shape[2], "a sample")
    return region.unpack(func(active, *args, **kwargs))


def max_pool(sparse: Sparse, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The largest active value of a window."""
    region = sparse.first(x)
    if region is None:
        return func(x, *args, **kwargs)
    out = func(x.masked_fill(~region.mask, -torch.inf), *args, **kwargs)
    if not isinstance(out, Tensor):
        raise unknown("max_pool with indices")
    return _pooled(sparse, out)


def average_pool(sparse: Sparse, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The mean of a window's active values; with padding, a dense window's weights are kept."""
    region = sparse.first(x)
    if region is None:
        return func(x, *args, **kwargs)
    share = region.mask.to(x.dtype)
    dense, seen = (func(of, *args, **kwargs) for of in (torch.ones_like(share), share))
    # An infinite factor of a window that sees nothing would be NaN in the gradient.
    factor = torch.where(seen > 0, dense / seen.masked_fill(seen == 0, 1), 0)
    return _pooled(sparse, func(x, *args, **kwargs) * factor)


def mean(
    sparse: Sparse, func: Function, x: Tensor, dim: Any = None, *args: Any, **kw: Any
) -> Tensor:
    """The mean of all active positions, or of each position's channels."""
    mask = sparse.mask(x)
    if mask is None:
        return func(x, dim, *args, **kw)
    channel = 1 if sparse.first(x) is not None else x.ndim - 1
    axes = () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    found = sorted(axis % x.ndim for axis in axes)
    if found == [channel]:
        return func(x, dim, *args, **kw)
    if found == [axis for axis in range(1, x.ndim) if axis != channel]:
        return func(x, dim, *args, **kw) / func(mask.to(x.dtype), dim, *args, **kw)
    raise unknown(f"mean over axes {found}")


def reshape(sparse: Sparse, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A vector in another shape; a map would lose its positions."""
    _require_vector(x, func)
    return func(x, *args, **kwargs)


def _pooled(sparse: Sparse, out: Tensor) -> Tensor:
    region = sparse.first(out)
    if region is not None:
        return out.masked_fill(~region.mask, 0)
    if math.prod(out.shape[2:]) > 1:
        raise unknown(f"a pooling to {tuple(out.shape[2:])}")
    return out


def _require_two(positions: int, where: str) -> None:
    if positions < 2:
        raise DataError(
            f"{positions} position is active in {where}; its statistics need two.",
            next_step="Take a larger schedule.batch_size or input.size, or a smaller mask_ratio.",
        )


def _require_vector(x: Tensor, func: Function) -> None:
    if x.ndim > 2 and math.prod(x.shape[1:]) > max(x.shape[1:]):
        raise unknown(f"{func.__name__} of {tuple(x.shape)}")


_KEEP = """
relu relu_ relu6 gelu silu hardswish leaky_relu leaky_relu_ elu selu celu mish tanh softshrink prelu
dropout dropout1d dropout2d dropout3d feature_dropout mul mul_ __mul__ __imul__ __rmul__ neg abs
square sqrt norm vector_norm linalg_vector_norm
__get__ dim size stride numel is_floating_point permute movedim transpose contiguous to float half
bfloat16 type clone detach rand new_empty bernoulli_ floor floor_
"""
_ADD = "add add_ sub sub_ __add__ __iadd__ __radd__ __sub__ __isub__"
_RESHAPE = "view reshape flatten squeeze unsqueeze"
_ERASE = "sigmoid softplus hardsigmoid exp div __truediv__"

RULES: dict[str, Any] = {
    **dict.fromkeys(_KEEP.split(), keep),
    **dict.fromkeys(_ERASE.split(), erase),
    **dict.fromkeys(_ADD.split(), add),
    **dict.fromkeys(_RESHAPE.split(), reshape),
    **{f"conv{axes}d": convolution for axes in (1, 2, 3)},
    **{f"{kind}max_pool{axes}d": max_pool for axes in (1, 2, 3) for kind in ("", "adaptive_")},
    **{f"{kind}avg_pool{axes}d": average_pool for axes in (1, 2, 3) for kind in ("", "adaptive_")},
    "hardtanh": hardtanh,
    "pad": pad,
    "cat": cat,
    "linear": linear,
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "group_norm": sample_norm,
    "instance_norm": sample_norm,
    "mean": mean,
}
