"""Pictures and volumes as rows of patches, and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

# Added to the variance of a patch (He et al., 2022, published code).
EPSILON = 1e-6


def patchify(pixels: Tensor, patch: Sequence[int]) -> Tensor:
    """Patches [B, L, P * C] of pixels [B, C, *sides], row by row; channels stand last in a patch.

    Args:
        pixels: Of two or three dimensions in space.
        patch: Side of a patch in each; P is their product.

    Raises:
        ValueError: If a patch does not divide the picture.
    """
    batch, channels, *sides = pixels.shape
    if len(sides) != len(patch) or any(s % p for s, p in zip(sides, patch, strict=True)):
        raise ValueError(f"patches of {tuple(patch)} do not divide {tuple(sides)}")
    n = len(sides)
    split = [part for s, p in zip(sides, patch, strict=True) for part in (s // p, p)]
    order = (0, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2), 1)
    return pixels.reshape(batch, channels, *split).permute(order).flatten(1 + n).flatten(1, n)


def unpatchify(patches: Tensor, patch: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Pixels [B, C, *sides] of the patches [B, L, P * C] that :func:`patchify` made.

    Args:
        patches: All L of them.
        patch: Side of a patch in each dimension.
        grid: Patches in each dimension.
    """
    n = len(patch)
    parts = patches.reshape(len(patches), *grid, *patch, -1)
    order = (0, 2 * n + 1, *(axis for k in range(n) for axis in (1 + k, 1 + n + k)))
    sides = [g * p for g, p in zip(grid, patch, strict=True)]
    return parts.permute(order).reshape(len(patches), -1, *sides)


def shrink(patches: Tensor, patch: Sequence[int], scale: int) -> Tensor:
    """Patches [B, L, P * C] of a picture at a `scale`-th of their sides, by cubics.

    Each is shrunk on its own: no pixel of one reaches another.

    Args:
        patches: As :func:`patchify` orders them, of two dimensions.
        patch: Their sides.
        scale: A divisor of these.
    """
    alone = unpatchify(patches.flatten(0, 1).unsqueeze(1), patch, (1, 1))
    sides = [side // scale for side in patch]
    small = functional.interpolate(alone, sides, mode="bicubic", align_corners=False)
    return patchify(small, sides).reshape(*patches.shape[:2], -1)


def moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each patch, [B, L, 1]."""
    spread = (patches.var(dim=-1, keepdim=True) + EPSILON).sqrt()
    return patches.mean(dim=-1, keepdim=True), spread


def take(values: Tensor, places: Tensor) -> Tensor:
    """Rows [B, k, D] of `values` [B, L, D] at `places` [B, k]."""
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
