"""Fixed positions of patches (Vaswani et al., 2017, section 3.5; He et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BASE = 10000.0


def sin_cos(grid: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of every place of a grid, [L, width], the first dimension outermost.

    Each dimension has an equal share of the width, the last one first, as published checkpoints
    have it; what cannot be shared out, as in a volume, stays zero.

    Args:
        grid: Patches in each dimension.
        width: Of a token.
    """
    waves = width // (2 * len(grid))
    rates = BASE ** -(torch.arange(waves, dtype=torch.float64) / waves)
    axes = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij"
    )
    parts = []
    for axis in reversed(axes):
        angles = axis.flatten().outer(rates)
        parts += [angles.sin(), angles.cos()]
    found = torch.cat(parts, dim=1)
    rest = found.new_zeros(len(found), width - found.shape[1])
    return torch.cat([found, rest], dim=1).float()
