"""One kernel for every adapter with a waist: down to a few channels, an activation, up again.

- bottleneck: `W_up act(W_down x + b_down) + b_up` (Houlsby et al., ICML 2019);
- Conformer: LN, point-wise to 2b, GLU, depth-wise convolution over the tokens, norm, SiLU,
  point-wise back (Cappellazzo et al., MLSP 2024, arXiv 2312.03694, section 3.2).

Both start silent: the projection up is zero, the projection down is not, since with both at
zero no gradient reaches either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galenic.core.errors import ConfigError


class OutOfRangeError(ConfigError, ValueError):
    """A size that does not fit the network, or no network at all."""


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, the GELU of CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "relu": F.relu, "silu": F.silu, "quick_gelu": quick_gelu,
}  # fmt: skip


def check_range(value: int, low: int, high: int, key: str, what: str) -> int:
    """`value`, if it lies in `low` to `high`.

    Raises:
        OutOfRangeError: Naming the key and the range.
    """
    if not low <= value <= high:
        raise OutOfRangeError(
            f"{key} is {value}, which does not fit {what}.",
            where=f"tuner.{key}",
            expected=f"{low} to {high}",
        )
    return value


@dataclass(frozen=True)
class Normed:
    """How the input of an adapter came out of a layer norm.

    Attributes:
        h: What went into the norm [..., d].
        weight: Its scale [d].
        bias: Its shift [d].
        eps: Its epsilon.
    """

    h: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


class BottleneckFunction(torch.autograd.Function):
    """`base + W_up act(W_down x + b_down) + b_up`, which keeps as little of size d as it can.

    A frozen layer keeps nothing for its backward pass, so all that an adapter keeps counts.
    The waist is made again, with one product of b channels. So is x, where it is told that a
    norm made it from h: the norm keeps h anyway, and makes x again to the bit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor | None,
        x: Tensor,
        down: Tensor,
        down_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        activation: str,
        normed: Normed | None,
    ) -> Tensor:
        """See the class; shapes as in :func:`bottleneck`."""
        waist = ACTIVATIONS[activation](F.linear(x, down, down_bias))
        result = F.linear(waist, up, up_bias)
        ctx.activation = activation
        ctx.eps = None if normed is None else normed.eps
        source = (x, None, None) if normed is None else (normed.h, normed.weight, normed.bias)
        ctx.save_for_backward(down, down_bias, up, *source)
        return result if base is None else result.add_(base)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of everything but the name of the activation."""
        down, down_bias, up, x, weight, bias = ctx.saved_tensors
        need = ctx.needs_input_grad
        g = grad.reshape(-1, grad.shape[-1])
        if ctx.eps is not None:
            x = F.layer_norm(x, x.shape[-1:], weight, bias, ctx.eps)
        rows = x.reshape(-1, x.shape[-1])
        with torch.enable_grad():
            inner = F.linear(rows, down, down_bias).detach().requires_grad_()
            waist = ACTIVATIONS[ctx.activation](inner)
        (g_inner,) = torch.autograd.grad(waist, inner, g @ up)
        return (
            grad if need[0] else None,
            (g_inner @ down).view_as(x) if need[1] else None,
            g_inner.T @ rows if need[2] else None,
            g_inner.sum(0) if need[3] else None,
            g.T @ waist.detach() if need[4] else None,
            g.sum(0) if need[5] else None,
            None,
            None,
        )


def bottleneck(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    *,
    activation: str = "gelu",
    base: Tensor | None = None,
    normed: Normed | None = None,
) -> Tensor:
    """`base + up @ act(down @ x + down_bias) + up_bias`, token by token.

    Args:
        x: Input [..., d].
        down: [b, d].
        down_bias: [b].
        up: [e, b].
        up_bias: [e].
        activation: A key of :data:`ACTIVATIONS`.
        base: What it is added to [..., e]; None for nothing.
        normed: Where x comes from, if from a layer norm; saves memory, and changes nothing else.

    Returns:
        [..., e], in the type of `base`, else of `x`.
    """
    weights = (down, down_bias, up, up_bias)
    dtype = working_dtype(x, down)
    if normed is not None and not x.dtype == normed.h.dtype == dtype:
        normed = None
    x, *cast = (value.to(dtype) for value in (x, *weights))
    fused = base if base is None or base.dtype == dtype else None
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *cast)):
            result: Tensor = BottleneckFunction.apply(fused, x, *cast, activation, normed)
        else:
            # Plain operators: exporters and compilers know these.
            down, down_bias, up, up_bias = cast
            result = F.linear(ACTIVATIONS[activation](F.linear(x, down, down_bias)), up, up_bias)
            result = result if fused is None else result + fused
    return result if base is None or fused is not None else base + result.to(base.dtype)


def working_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Type to compute in: autocast's where it is on, else the adapter's own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return weight.dtype


class Bottleneck(nn.Module):
    """The adapter of Houlsby and of Pfeiffer: one waist, token by token.

    Args:
        width: d.
        size: b.
        activation: A key of :data:`ACTIVATIONS`.
        zero_init_up: Start silent.

    Raises:
        OutOfRangeError: If b is not in 1 to d.
    """

    def __init__(
        self, width: int, size: int, *, activation: str = "gelu", zero_init_up: bool = True
    ) -> None:
        super().__init__()
        check_range(size, 1, width, "bottleneck", f"a layer of width {width}")
        self.activation = activation
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        if zero_init_up:
            _silence(self.up)

    def forward(
        self,
        x: Tensor,
        base: Tensor | None = None,
        keep: Tensor | None = None,
        normed: Normed | None = None,
    ) -> Tensor:
        """`base + adapter(x)`, [B, N, d]; `keep` is not needed, as no token sees another."""
        return bottleneck(
            x, self.down.weight, self.down.bias, self.up.weight, self.up.bias,
            activation=self.activation, base=base, normed=normed,
        )  # fmt: skip


class Conformer(nn.Module):
    """The adapter with a depth-wise convolution over the tokens in its waist.

    Args:
        width: d.
        size: b.
        kernel: Tokens that a convolution spans; odd.
        norm: `batch` (the paper), or `group`: over the channels of each token, for batches
            too small for statistics.
        dropout: After the projection up.
        zero_init_up: Start silent.

    Raises:
        OutOfRangeError: If b is not in 1 to d, or the kernel is even.
    """

    def __init__(
        self,
        width: int,
        size: int,
        *,
        kernel: int = 31,
        norm: str = "batch",
        dropout: float = 0.0,
        zero_init_up: bool = True,
    ) -> None:
        super().__init__()
        check_range(size, 1, width, "bottleneck", f"a layer of width {width}")
        check_kernel(kernel)
        self.input_norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, 2 * size)
        self.depthwise = nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=size)
        self.inner_norm = nn.BatchNorm1d(size) if norm == "batch" else nn.GroupNorm(1, size)
        self.up = nn.Linear(size, width)
        self.dropout = nn.Dropout(dropout)
        if zero_init_up:
            _silence(self.up)

    def forward(
        self,
        x: Tensor,
        base: Tensor | None = None,
        keep: Tensor | None = None,
        normed: Normed | None = None,
    ) -> Tensor:
        """`base + adapter(x)`.

        Args:
            x: Tokens [B, N, d].
            base: What it is added to [B, N, d].
            keep: True for real tokens [B, N]; the others are zero to the convolution, and no
                part of the statistics, so that padding changes nothing.
            normed: Not needed: this adapter has a norm of its own.
        """
        x = x.to(self.down.weight.dtype) if x.dtype != self.down.weight.dtype else x
        waist = F.glu(self.down(self.input_norm(x)), dim=-1)
        if keep is not None:
            waist = waist * keep.unsqueeze(-1)
        mixed = self.depthwise(waist.transpose(1, 2)).transpose(1, 2)
        mixed = F.silu(self._normalised(mixed, keep))
        result = self.dropout(self.up(mixed))
        return result if base is None else base + result.to(base.dtype)

    def _normalised(self, mixed: Tensor, keep: Tensor | None) -> Tensor:
        """Norm over rows [tokens, b]: statistics of all tokens of the batch, as in [B, b, N]."""
        if keep is None:
            return self.inner_norm(mixed.flatten(0, 1)).view_as(mixed)
        rows = self.inner_norm(mixed[keep])
        return torch.zeros_like(mixed, dtype=rows.dtype).masked_scatter(keep.unsqueeze(-1), rows)


def check_kernel(kernel: int) -> None:
    """Refuse a kernel that has no middle.

    Raises:
        OutOfRangeError: If it is even, or below 1.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise OutOfRangeError(
            f"kernel_size is {kernel}.",
            where="tuner.kernel_size",
            expected="an odd number of tokens, 1 or more",
        )


def waist_of(
    width: int, reduction: float | None, size: int | None, *, default: float, floor: int
) -> int:
    """Channels of the waist in a layer of some width.

    Args:
        width: d.
        reduction: d / b, as the papers count; rounded.
        size: b itself; goes before `reduction`.
        default: Reduction where neither is given.
        floor: Fewest channels that the default gives.

    Raises:
        OutOfRangeError: If what was asked for is not in 1 to d.
    """
    if size is not None:
        return check_range(size, 1, width, "bottleneck", f"a layer of width {width}")
    if reduction is None:
        return min(width, max(floor, round(width / default)))
    found = round(width / reduction)
    if not 1 <= found <= width:
        raise OutOfRangeError(
            f"reduction is {reduction:g}, which leaves {found} channels of {width}.",
            where="tuner.reduction",
            expected=f"1 to {width}",
        )
    return found


def _silence(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
