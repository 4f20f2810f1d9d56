"""The nuclear norm of a sparse matrix, as a function of its entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Singular values below this share of the largest count as zero: the Gram matrix is taken in
# float64, whose rounding shows in the square root from 1e-8 on.
_ZERO = 1e-6


class _Nuclear(torch.autograd.Function):
    """Sum of singular values; the sub-gradient `U V^T` at the entries is taken at once."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, rows: int, columns: int) -> Tensor:
        flat = values.detach().new_zeros(rows * columns, dtype=torch.float64)
        flat[index] = values.detach().reshape(-1).double()
        matrix = flat.view(rows, columns)
        # By the smaller Gram matrix: U V^T = (A A^T)^(-1/2) A, much cheaper than an SVD.
        small = matrix if rows <= columns else matrix.T
        squares, vectors = torch.linalg.eigh(small @ small.T)
        sizes = squares.clamp_min(0).sqrt()
        kept = sizes > _ZERO * sizes.max()
        inverse = torch.where(kept, 1 / sizes.where(kept, torch.ones_like(sizes)), 0)
        polar = (vectors * inverse) @ (vectors.T @ small)
        polar = polar if rows <= columns else polar.T
        slope = polar.reshape(-1)[index].to(values.dtype).reshape(values.shape)
        ctx.save_for_backward(slope)
        return sizes.sum().to(values.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None, None


def nuclear_norm(values: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """Nuclear norm of the matrix with `values` at `index` and zeros elsewhere (equation 6).

    Args:
        values: [k] or [1, k].
        index: int64 [k], flat places.
        shape: Of the matrix.

    Returns:
        Scalar, whose gradient is `U V^T` at the places (a sub-gradient where the matrix has
        no full rank).
    """
    found: Tensor = _Nuclear.apply(values, index, *shape)
    return found
