"""The orthogonality terms, as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

Norm = Callable[[Tensor, Tensor], Tensor]


class _AbsoluteSum(torch.autograd.Function):
    """Sum of absolute entries of `P Q^T`, for P [d, r] and Q [e, r].

    The gradient needs the signs of d x e entries but is itself of the size of the factors, and
    does not depend on the batch: it is taken in the forward pass, so that nothing of size d x e
    is kept.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        # Short sides first and in one piece: for ranks of a few, products in this layout take a
        # quarter of the time of `sign @ right` and `sign.T @ left`.
        short_left, short_right = left.T.contiguous(), right.T.contiguous()
        sign = (left @ short_right).sign_()
        to_left, to_right = (short_right @ sign.T).T, (short_left @ sign).T
        ctx.save_for_backward(to_left, to_right)
        # sum |p| = sum p sign(p), without another pass over d x e entries.
        return (to_left * left).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return grad * left, grad * right


def l1_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum of absolute entries of `left right^T` (the paper's norm)."""
    found: Tensor = _AbsoluteSum.apply(left, right)
    return found


def l1_mean(left: Tensor, right: Tensor) -> Tensor:
    """Mean of absolute entries of `left right^T`: does not grow with the width."""
    return l1_sum(left, right) / (len(left) * len(right))


def fro2(left: Tensor, right: Tensor) -> Tensor:
    """Sum of squared entries of `left right^T`, without forming it: tr(L^T L R^T R)."""
    return ((left.T @ left) * (right.T @ right)).sum()


NORMS: dict[str, Norm] = {"l1_sum": l1_sum, "l1_mean": l1_mean, "fro2": fro2}


def orthogonal_terms(
    weight: Tensor, down: Tensor, up: Tensor, norm: str = "l1_sum"
) -> tuple[Tensor, Tensor]:
    """Both terms of one projection (Hu et al., equations 4 and 5).

    preserve = sum_i |W (B_i A_i)^T|, diversify = sum_{i<j} |(B_i A_i) (B_j A_j)^T|. No product
    of two d x d matrices is taken: `W A_i^T` and `B_i (A_i A_j^T)` are d x r.

    Args:
        weight: W [d_out, d_in], frozen.
        down: A [N, r, d_in].
        up: B [N, d_out, r].
        norm: A key of :data:`NORMS`.

    Returns:
        preserve, diversify: Scalars in float32.
    """
    measure = NORMS[norm]
    weight, down, up = weight.float(), down.float(), up.float()
    # Sums over d x d entries do not bear 16 bits, whatever the step around them computes in.
    with torch.autocast(weight.device.type, enabled=False):
        projected = torch.einsum("oi,nri->nor", weight, down)
        preserve = torch.stack([measure(p, b) for p, b in zip(projected, up, strict=True)]).sum()
        pairs = [
            measure(up[i] @ (down[i] @ down[j].T), up[j])
            for i, j in combinations(range(len(up)), 2)
        ]
        diversify = torch.stack(pairs).sum() if pairs else preserve.new_zeros(())
    return preserve, diversify
