"""The maths of SSF, on bare tensors.

`y = gamma * x + beta`, per channel. A frozen linear layer saves nothing for its backward
pass, so in a plain product autograd keeps `x` for the sake of `gamma` alone, beside the `y`
that the next operator keeps anyway. Here only `y` is kept, in the very tensor that the next
operator shares, since

    dgamma = sum(g * x) = (sum(g * y) - beta * sum(g)) / gamma

needs no `x`. Where gamma is small against beta this difference cancels, and `x` is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# |beta / gamma| up to which the difference above loses no more than about 6 of 24 bits
# (float32), or stays at the rounding of x itself (16 bits).
RATIO = {torch.float64: 2.0**20, torch.float32: 64.0, torch.bfloat16: 4.0, torch.float16: 4.0}
# Below this |gamma|, y itself may underflow.
SMALLEST = {
    torch.float64: 1e-12,
    torch.float32: 1e-4,
    torch.bfloat16: 0.0625,
    torch.float16: 0.0625,
}


def rebuildable(gamma: Tensor, beta: Tensor, dtype: torch.dtype) -> bool:
    """Whether `dgamma` can be had from the output without losing precision.

    Args:
        gamma: Scale [c].
        beta: Shift [c].
        dtype: Type of the activation.
    """
    small = SMALLEST.get(dtype)
    if small is None or not gamma.numel():
        return False
    size = gamma.detach().abs()
    fits = (size > small) & (beta.detach().abs() <= RATIO[dtype] * size)
    return bool(fits.all())


def broadcast(vector: Tensor, dims: int, axis: int) -> Tensor:
    """`vector` [c] as [1, .., c, .., 1] with `dims` dimensions, c at `axis`."""
    shape = [1] * dims
    shape[axis] = -1
    return vector.view(shape)


def apply(x: Tensor, gamma: Tensor, beta: Tensor, axis: int) -> Tensor:
    """`gamma * x + beta` without any saving trick; computed in the wider type, given in x's.

    Args:
        x: Activation, c channels at `axis`.
        gamma: Scale [c].
        beta: Shift [c].
        axis: Channel axis of x.
    """
    wide = torch.addcmul(broadcast(beta, x.dim(), axis), broadcast(gamma, x.dim(), axis), x)
    return wide.to(x.dtype)


class ScaleShift(torch.autograd.Function):
    """`y = gamma * x + beta` that saves one activation: y, or x where y would not do."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, axis: int, keep_output: bool
    ) -> Tensor:
        """See the module; `keep_output` asks for y to be saved instead of x."""
        y = apply(x, gamma, beta, axis)
        ctx.axis, ctx.keep_output = axis, keep_output
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(gamma, beta, y if keep_output else x)
        else:
            ctx.save_for_backward(gamma, beta)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, gamma and beta."""
        gamma, beta, *kept = ctx.saved_tensors
        axis = ctx.axis % g.dim()
        dx = dgamma = dbeta = None
        if ctx.needs_input_grad[0]:
            dx = (g * broadcast(gamma, g.dim(), axis)).to(g.dtype)
        rest = [d for d in range(g.dim()) if d != axis]
        wide = torch.promote_types(gamma.dtype, torch.float32)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            total = g.sum(rest, dtype=wide) if rest else g.to(wide)
            dbeta = total.to(beta.dtype) if ctx.needs_input_grad[2] else None
        if ctx.needs_input_grad[1]:
            value = kept[0]
            product = _contract(g, value, axis, wide)
            if ctx.keep_output:
                product = (product - beta.to(wide) * total) / gamma.to(wide)
            dgamma = product.to(gamma.dtype)
        return dx, dgamma, dbeta, None, None


def _contract(a: Tensor, b: Tensor, axis: int, wide: torch.dtype) -> Tensor:
    """Sum of `a * b` over every axis but `axis`: [c], accumulated in `wide`."""
    rest = [d for d in range(a.dim()) if d != axis]
    if not rest:
        return a.to(wide) * b.to(wide)
    return (a * b).sum(rest, dtype=wide) if a.dtype == wide else (a.to(wide) * b).sum(rest)


def scale_shift(x: Tensor, gamma: Tensor, beta: Tensor, axis: int, *, rebuild: bool) -> Tensor:
    """`gamma * x + beta` over the channels at `axis`.

    Args:
        x: Activation [..., c, ...].
        gamma: Scale [c].
        beta: Shift [c].
        axis: Channel axis of x.
        rebuild: Whether y may be kept instead of x. Not where a following operator writes
            into y in place.

    Returns:
        Tensor of the shape and type of x.
    """
    training = torch.is_grad_enabled() and (
        x.requires_grad or gamma.requires_grad or beta.requires_grad
    )
    if not training:
        # Plain operators: exporters and compilers know these.
        return apply(x, gamma, beta, axis)
    keep = rebuild and gamma.requires_grad and rebuildable(gamma, beta, x.dtype)
    result: Tensor = ScaleShift.apply(x, gamma, beta, axis, keep)
    return result
