"""The largest singular values and vectors of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

# From this shorter side on, a random projection finds the largest ones (Halko et al., 2011).
_EXACT = 768


def folded(weight: Tensor) -> Tensor:
    """A tensor as a matrix [rows, columns]: all but its first dimension are columns."""
    return weight.reshape(weight.shape[0], -1)


def largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [rows, r], S [r] and V^T [r, columns] of the `rank` largest singular values.

    The same matrix gives the same answer; the global random state stays as it was.
    """
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= _EXACT:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=rank + 16, niter=4)
        vh = v.T
    return u[:, :rank], s[:rank], vh[:rank]
