"""From feature maps to a class a pixel: one linear layer, or a small U-Net on the way up.

After Baharoon et al., 2023, arXiv 2312.02366: a 1 x 1 convolution on the patch grid, or stages of
transposed convolutions that take earlier maps in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SMOOTH = {2: "bilinear", 3: "trilinear"}


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [B, C, ...] brought to `size`, linearly."""
    return functional.interpolate(
        maps, tuple(size), mode=SMOOTH[maps.ndim - 2], align_corners=False
    )


class LinearDecoder(nn.Module):
    """One linear layer on the normalised last map, then resized.

    Args:
        channels: Of each map; the last one is used.
        classes: Outputs a pixel.
        size: Of the output.
    """

    def __init__(self, channels: Sequence[int], classes: int, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.norm = NORM[len(self.size)](channels[-1])
        self.classify = CONVOLUTION[len(self.size)](channels[-1], classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B, classes, *size] of maps [B, C, ...]."""
        return resized(self.classify(self.norm(maps[-1])), self.size)


class UNetDecoder(nn.Module):
    """Stages that double the last map and take the earlier ones in, coarsest first.

    An earlier map is brought to the size of its stage, whatever it has.

    Args:
        channels: Of each map, the last one deepest.
        classes: Outputs a pixel.
        size: Of the output.
        width: Channels before the first stage, halved by each; None for those of the last map.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        size: Sequence[int],
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.size = tuple(size)
        axes = len(self.size)
        self.norms = nn.ModuleList(NORM[axes](count) for count in channels)
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        inner, half = channels[-1], width or channels[-1]
        for skip in reversed(channels[:-1]):
            half = max(half // 2, 1)
            self.ups.append(TRANSPOSED[axes](inner, half, 2, stride=2))
            joined = CONVOLUTION[axes](half + skip, half, 3, padding=1, bias=False)
            self.joins.append(nn.Sequential(joined, NORM[axes](half), nn.ReLU()))
            inner = half
        self.classify = CONVOLUTION[axes](inner, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B, classes, *size] of maps [B, C, ...]."""
        *earlier, state = (norm(one) for norm, one in zip(self.norms, maps, strict=True))
        for up, join, skip in zip(self.ups, self.joins, reversed(earlier), strict=True):
            state = up(state)
            state = join(torch.cat([state, resized(skip, state.shape[2:])], dim=1))
        return resized(self.classify(state), self.size)
