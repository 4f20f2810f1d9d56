"""An operator and its pair in one step, where that keeps less and touches activations less.

`gamma * (W x + b) + beta` is `(gamma W) x + (gamma b + beta)`: scaling the weight costs d x d,
scaling the output a pass over all tokens. So too for a layer norm. In 16-bit types a scale near
one would vanish in the rounding of `gamma W`, so this is for wider types only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.tuners.ssf.functional import RATIO, SMALLEST, rebuildable

WIDE = (torch.float32, torch.float64)
# Values of one block of rows: 512 KiB of float32.
BLOCK = 2**17


class ScaledLinear(torch.autograd.Function):
    """`(gamma W) x + gamma b + beta`; keeps the output, or the input where others keep that.

    From the output, dgamma = (sum(g y) - beta sum(g)) / gamma. From the input it is the diagonal
    of W (g^T x)^T plus b sum(g): one more product, and no output of its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        keep_input: bool,
    ) -> Tensor:
        """Output [..., out] of `x` [..., in]."""
        shift = beta if bias is None else torch.addcmul(beta, gamma, bias)
        y = functional.linear(x, gamma.unsqueeze(1) * weight, shift)
        ctx.keep_input = keep_input
        ctx.save_for_backward(weight, bias, gamma, beta, x if keep_input else y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, gamma and beta."""
        weight, bias, gamma, beta, kept = ctx.saved_tensors
        dx = g @ (gamma.unsqueeze(1) * weight) if ctx.needs_input_grad[0] else None
        flat, kept = g.flatten(0, -2), kept.flatten(0, -2)
        if ctx.keep_input:
            dbeta = flat.sum(0)
            dgamma = ((flat.T @ kept) * weight).sum(1)
            dgamma = dgamma if bias is None else torch.addcmul(dgamma, dbeta, bias)
        else:
            product, dbeta = contract(flat, kept)
            dgamma = (product - beta * dbeta) / gamma
        return dx, None, None, dgamma, dbeta, None


class ScaledLayerNorm(torch.autograd.Function):
    """`gamma * norm(x) + beta`; keeps the output and the spread, and not the input.

    The normalised input is (y - shift) / scale; the norm's own backward kernel takes it as an
    input of mean 0 and spread 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
    ) -> Tensor:
        """Output of the shape of `x`, normalised over its last axis."""
        scale, shift = gamma * weight, torch.addcmul(beta, gamma, bias)
        y, _, spread = torch.native_layer_norm(x, [x.shape[-1]], scale, shift, eps)
        ctx.save_for_backward(weight, bias, gamma, beta, y, spread)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, gamma and beta."""
        weight, bias, gamma, beta, y, spread = ctx.saved_tensors
        scale, shift = gamma * weight, torch.addcmul(beta, gamma, bias)
        normal = torch.addcmul(-shift / scale, y, 1 / scale)
        dx, dscale, dshift = torch.ops.aten.native_layer_norm_backward(
            g.contiguous(),
            normal,
            [y.shape[-1]],
            torch.zeros_like(spread),
            torch.ones_like(spread),
            scale,
            shift,
            [ctx.needs_input_grad[0], True, True],
        )
        if dx is not None:
            dx.mul_(spread)
        return dx, None, None, torch.addcmul(bias * dshift, weight, dscale), dshift, None


def contract(g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`sum(g y)` and `sum(g)` over the rows of two tensors [n, c], each read once.

    Row by row, the product stays in the processor's cache instead of going through memory.
    """
    if g.device.type != "cpu":
        return (g * y).sum(0), g.sum(0)
    product, total = g.new_zeros(g.shape[1]), g.new_zeros(g.shape[1])
    rows = max(BLOCK // g.shape[1], 1)
    for a, b in zip(g.split(rows), y.split(rows), strict=True):
        product += (a * b).sum(0)
        total += a.sum(0)
    return product, total


def fused(
    module: nn.Module, x: Tensor, gamma: Tensor, beta: Tensor, *, keep_input: bool
) -> Tensor | None:
    """The operator's output, scaled and shifted; None where the two steps are to be apart.

    Args:
        module: The operator.
        x: Its input.
        gamma: Scale [c].
        beta: Shift [c].
        keep_input: Whether a linear layer's input is kept by others anyway.
    """
    if not _suits(module, x, gamma, beta):
        return None
    if type(module) is nn.Linear:
        if not keep_input and not rebuildable(gamma, beta, x.dtype):
            return None
        result: Tensor = ScaledLinear.apply(x, module.weight, module.bias, gamma, beta, keep_input)
        return result
    assert isinstance(module, nn.LayerNorm)
    if not _invertible(module, gamma, beta):
        return None
    normal: Tensor = ScaledLayerNorm.apply(x, module.weight, module.bias, gamma, beta, module.eps)
    return normal


def _suits(module: nn.Module, x: Tensor, gamma: Tensor, beta: Tensor) -> bool:
    if type(module) not in (nn.Linear, nn.LayerNorm) or x.dim() < 2:
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return False
    weight, bias = module.weight, module.bias
    if weight is None or torch.is_autocast_enabled(x.device.type):
        return False
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return False
    if not (gamma.requires_grad and beta.requires_grad and torch.is_grad_enabled()):
        return False
    if isinstance(module, nn.LayerNorm) and (bias is None or len(module.normalized_shape) != 1):
        return False
    return x.dtype in WIDE and x.dtype == weight.dtype == gamma.dtype


def _invertible(module: nn.LayerNorm, gamma: Tensor, beta: Tensor) -> bool:
    """Whether the normalised input can be had from the output without losing precision."""
    scale = (gamma * module.weight).detach().abs()
    shift = torch.addcmul(beta, gamma, module.bias).detach().abs()
    dtype = gamma.dtype
    return bool(((scale > SMALLEST[dtype]) & (shift <= RATIO[dtype] * scale)).all())
