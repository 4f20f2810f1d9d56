"""The maths of UniPT, on bare tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Scores that stand in memory at a time: queries are taken in parts of about this many.
SCORES = 2**24


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over valid tokens [B, m]; zero where a sample has none.

    Args:
        tokens: [B, N, m].
        mask: [B, N], 1 at valid tokens; None where all are.
    """
    if mask is None:
        return tokens.mean(dim=1)
    keep = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * keep).sum(dim=1) / keep.sum(dim=1).clamp_min(1.0)


def similarity(query: Tensor, key: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """`relu(query key^T)`, zero at masked keys, rows divided by their sum: [B, Q, N].

    A row without a positive score is zero.

    Args:
        query: [B, Q, m].
        key: [B, N, m].
        mask: [B, N] of the keys; None where all are valid.
        eps: Smallest sum that is divided by.
    """
    return _rows(query, key, mask, eps)[0]


def _rows(query: Tensor, key: Tensor, mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised rows, and their sums before [B, Q, 1]."""
    scores = torch.relu_(query @ key.transpose(1, 2))
    if mask is not None:
        # Filled, not multiplied: what stands at padding may be infinite.
        scores = scores.masked_fill_(mask[:, None, :] == 0, 0.0)
    sums = scores.sum(dim=-1, keepdim=True)
    return scores / sums.clamp_min(eps), sums


class Interact(torch.autograd.Function):
    """`weight * (P T + added)`, with P the similarity of anchor and target.

    Autograd would keep several [B, N, N] a layer; here only anchor and target are kept, and P
    is made again in the backward pass, a part of the queries at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        eps: float,
        identity: bool,
        chunk: int | None,
    ) -> Tensor:
        """See `interact`."""
        ctx.save_for_backward(anchor, target, weight, mask)
        ctx.eps, ctx.identity, ctx.chunk = eps, identity, chunk
        with torch.autocast(anchor.device.type, enabled=False):
            parts = [
                similarity(query, target, mask, eps) @ target
                for query in anchor.split(_part(anchor, target, chunk), dim=1)
            ]
            mixed = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            if identity:
                mixed += target
            return mixed.mul_(weight[:, None, None])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of anchor, target and weight."""
        anchor, target, weight, mask = ctx.saved_tensors
        scaled = grad * weight[:, None, None]
        d_target = scaled.clone() if ctx.identity else torch.zeros_like(target)
        # Of the weight: sum(grad * mixed). The part of P T is summed from P below.
        d_weight = (grad * target).sum(dim=(1, 2)) if ctx.identity else torch.zeros_like(weight)
        d_anchor = []
        size = _part(anchor, target, ctx.chunk)
        for query, plain, part in zip(
            anchor.split(size, 1), grad.split(size, 1), scaled.split(size, 1), strict=True
        ):
            rows, sums = _rows(query, target, mask, ctx.eps)
            d_target += rows.transpose(1, 2) @ part
            slope = plain @ target.transpose(1, 2)
            along = (slope * rows).sum(dim=-1, keepdim=True)
            d_weight = d_weight + along.sum(dim=(1, 2))
            # d(r / max(sum, eps)): below eps the divisor is a constant.
            slope -= torch.where(sums > ctx.eps, along, torch.zeros_like(along))
            slope *= weight[:, None, None] / sums.clamp_min(ctx.eps)
            # Zero where the score was clipped or masked.
            slope = torch.ops.aten.threshold_backward(slope, rows, 0.0)
            d_anchor.append(slope @ target)
            d_target += slope.transpose(1, 2) @ query
        return torch.cat(d_anchor, dim=1), d_target, d_weight, None, None, None, None


def interact(
    anchor: Tensor,
    target: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    *,
    eps: float = 1e-6,
    identity: bool = True,
    chunk: int | None = None,
) -> Tensor:
    """`weight * S T` with S the similarity of anchor and target, plus one on the diagonal.

    Args:
        anchor: [B, Q, m].
        target: [B, N, m]; Q is N where `identity`.
        weight: [B], confidence in this layer.
        mask: [B, N] of the targets; None where all are valid.
        eps: Smallest row sum that is divided by.
        identity: Whether S has the one on its diagonal.
        chunk: Queries at a time; None takes as many as about 16 million scores allow.

    Returns:
        [B, Q, m].
    """
    kind = torch.promote_types(anchor.dtype, torch.float32)
    result: Tensor = Interact.apply(
        anchor.to(kind), target.to(kind), weight.to(kind), mask, eps, identity, chunk
    )
    return result


def _part(anchor: Tensor, target: Tensor, chunk: int | None) -> int:
    if chunk is not None:
        return chunk
    return max(1, SCORES // max(1, len(anchor) * target.shape[1]))


def cells(state: Tensor, rows: int, columns: int) -> Tensor:
    """A map [B, d, h, w] as cells of a coarser grid [B, d, rows, s, columns, t].

    Raises:
        ValueError: If the grid does not divide the map.
    """
    height, width = state.shape[-2:]
    if height % rows or width % columns:
        raise ValueError(
            f"a map of {height} x {width} has no whole cells on a grid of {rows} x {columns}"
        )
    return state.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))


def pool_cells(state: Tensor, query: Tensor, eps: float = 1e-6) -> Tensor:
    """A map summed over the cells of a coarser one, weighted by its likeness to it.

    Weights are `relu(sum over channels of state * query)`, divided by their sum in the cell,
    plus one over the cell's size.

    Args:
        state: [B, d, H, W], each side a multiple of the query's.
        query: [B, d, h, w].
        eps: Smallest sum that is divided by.

    Returns:
        [B, d, h, w].

    Raises:
        ValueError: If the sides do not divide.
    """
    rows, columns = query.shape[-2:]
    inside = cells(state, rows, columns)
    size = inside.shape[3] * inside.shape[5]
    if size == 1:
        return state
    likeness = torch.relu(torch.einsum("bdhw,bdhiwj->bhiwj", query, inside))
    weights = likeness / likeness.sum(dim=(2, 4), keepdim=True).clamp_min(eps) + 1.0 / size
    return torch.einsum("bhiwj,bdhiwj->bdhw", weights, inside)
