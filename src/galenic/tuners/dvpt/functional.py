"""The maths of DVPT, on bare tensors.

The paper names the steps (bottleneck, prompts as queries over it, projection back); how D
returns to L positions is a reconstruction: to those of the prompt tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from galenic.tuners._bottleneck import OutOfRangeError, bottleneck, quick_gelu


def scale_of(setting: str | float, width: int) -> float:
    """Scale of attention over `width` channels: `rsqrt`, or a number that stands for itself."""
    return width**-0.5 if isinstance(setting, str) else float(setting)


def attend(queries: Tensor, features: Tensor, scale: float, keep: Tensor | None = None) -> Tensor:
    """`D = softmax(P Z^T scale) Z`: what the prompts gather from this sample.

    Args:
        queries: P [n, c].
        features: Z [B, L, c].
        scale: Of the scores.
        keep: True for real tokens [B, L]; padding is not looked at.

    Returns:
        D [B, n, c]; the order of the tokens does not matter.
    """
    scores = torch.einsum("nc,blc->bnl", queries, features) * scale
    if keep is not None:
        scores = scores.masked_fill(~keep.unsqueeze(1), torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).to(features.dtype) @ features


def share_mlp(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    gate: Tensor,
    base: Tensor | None = None,
) -> Tensor:
    """`base + g (W_u phi(W_d x + b_d) + b_u)`, phi the quick GELU.

    The gate goes into the small matrix, not over the tokens.

    Args:
        x: [B, L, d].
        down: [r, d].
        down_bias: [r].
        up: [d, r].
        up_bias: [d].
        gate: Scalar.
        base: [B, L, d], or None for nothing.

    Returns:
        [B, L, d].
    """
    return bottleneck(
        x, down, down_bias, gate * up, gate * up_bias, activation="quick_gelu", base=base
    )


def dynamic_mlp(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    gate: Tensor,
    queries: Tensor,
    *,
    at: int,
    scale: float,
    keep: Tensor | None = None,
) -> Tensor:
    """As :func:`share_mlp`, but the prompt tokens carry what the queries gather.

    `Z = phi(W_d x + b_d)`, `D = softmax(P Z^T scale) Z`; `g (W_u . + b_u)` of D at the n
    positions from `at` on, and of Z at all others.

    Args:
        x: [B, L, d], prompt tokens included.
        down: [r, d].
        down_bias: [r].
        up: [d, r].
        up_bias: [d].
        gate: Scalar.
        queries: P [n, r].
        at: Position of the first prompt token.
        scale: Of the attention.
        keep: True for real tokens [B, L].

    Returns:
        [B, L, d], in the type of `x`.
    """
    dtype = x.dtype
    z = quick_gelu(F.linear(x.to(down.dtype), down, down_bias))
    gathered = attend(queries, z, scale, keep).to(z.dtype)
    mixed = torch.cat([z[:, :at], gathered, z[:, at + queries.shape[0] :]], dim=1)
    return F.linear(mixed, gate * up, gate * up_bias).to(dtype)


def first_tokens(gathered: Tensor, length: int) -> Tensor:
    """`gathered` D [B, n, d] at the first n of `length` positions, zero behind: [B, L, d].

    Raises:
        OutOfRangeError: If there are fewer than n tokens.
    """
    count = gathered.shape[1]
    if count > length:
        raise OutOfRangeError(
            f"num_prompts is {count}, but a block of the network has only {length} tokens.",
            where="tuner.num_prompts",
            expected=f"1 to {length}",
            next_step="Fewer prompts, or larger images.",
        )
    return F.pad(gathered, (0, 0, 0, length - count))
