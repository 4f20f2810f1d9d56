"""From sparse maps at several strides to dense pixels: densify, then a U-Net's way up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError, ConfigError
from galenic.objectives.pretraining.spark.maps import Maps, Place, Sides

# Maps that the decoder is given, from the coarsest (Tian et al., 2023, section 3.2).
SCALES = 4
CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
UP: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Densify(nn.Module):
    """Norm, mask token at the empty positions, projection (Tian et al., 2023, section 3.2).

    Args:
        place: Of the map.
        width: Channels of the decoder there.
        batch_norm: Whether the norm is one of batches, as in the network; else of channels.
        coarsest: Whether it is the coarsest map, whose projection looks at one position.
    """

    def __init__(self, place: Place, width: int, batch_norm: bool, coarsest: bool) -> None:
        super().__init__()
        axes = len(place.stride)
        channels = place.channels
        self.norm = NORM[axes](channels) if batch_norm else ChannelNorm(channels)
        self.token = nn.Parameter(torch.zeros(1, channels, *(1,) * axes))
        nn.init.trunc_normal_(self.token, std=0.02, a=-0.02, b=0.02)
        kernel = 1 if coarsest else 3
        self.project = CONV[axes](channels, width, kernel, padding=kernel // 2)
        if coarsest and channels == width:
            self.project = nn.Identity()

    def forward(self, x: Tensor, mask: Tensor, sparse: AbstractContextManager[Any]) -> Tensor:
        """Dense map [B, width, *S] of a sparse one [B, C, *S].

        Args:
            x: The map.
            mask: Its active positions [B, 1, *S].
            sparse: What the norm is done in.
        """
        with sparse:
            x = self.norm(x)
        dense: Tensor = self.project(torch.where(mask, x, self.token.to(x.dtype)))
        return dense


class ChannelNorm(nn.LayerNorm):
    """A layer norm of the channels of a map [B, C, *S]."""

    def forward(self, input: Tensor) -> Tensor:
        """The normed map."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Twice the resolution, and two convolutions.

    Args:
        channels: In and out.
        factor: Of the resolution along each axis, 1 or 2.
    """

    def __init__(self, channels: tuple[int, int], factor: Sides) -> None:
        super().__init__()
        axes = len(factor)
        before, after = channels
        kernel = tuple(4 if by == 2 else 3 for by in factor)
        self.up = UP[axes](before, before, kernel, stride=factor, padding=1)
        self.refine = nn.Sequential(
            CONV[axes](before, before, 3, padding=1, bias=False),
            NORM[axes](before),
            nn.ReLU6(inplace=True),
            CONV[axes](before, after, 3, padding=1, bias=False),
            NORM[axes](after),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, after, *2S] of [B, before, *S]."""
        refined: Tensor = self.refine(self.up(x))
        return refined


class Decoder(nn.Module):
    """Five blocks for a stride of 32; each map is added before the block of its size.

    Args:
        maps: Of the encoder.
        channels: Of the pixels.
        width: Before the first block; each block halves it.
        batch_norm: Of :class:`Densify`.

    Raises:
        BackboneError: If a stride is no power of two.
        ConfigError: If the width cannot be halved that often.
    """

    def __init__(self, maps: Maps, channels: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        places = maps.places[::-1][:SCALES]
        strides = path(places)
        blocks = len(strides) - 1
        if width % 2**blocks:
            raise ConfigError(
                f"A width of {width} cannot be halved {blocks} times.",
                where="pretraining.decoder_width",
                expected=f"a multiple of {2**blocks}",
            )
        widths = [width >> block for block in range(blocks + 1)]
        self.strides = strides
        self.densify = nn.ModuleList(
            Densify(place, widths[strides.index(place.stride)], batch_norm, place is places[0])
            for place in places
        )
        self.blocks = nn.ModuleList(
            Block(pair, tuple(a // b for a, b in zip(before, after, strict=True)))
            for pair, (before, after) in zip(pairwise(widths), pairwise(strides), strict=True)
        )
        self.pixels = CONV[len(maps.stride)](widths[-1], channels, 1)
        for part in (self.blocks, self.pixels):
            part.apply(_initialise)

    def forward(self, dense: Mapping[Sides, Tensor]) -> Tensor:
        """Pixels [B, C, *S] of dense maps by stride."""
        x: Any = 0
        for stride, block in zip(self.strides, self.blocks, strict=False):
            x = block(x + dense[stride] if stride in dense else x)
        pixels: Tensor = self.pixels(x)
        return pixels


def path(places: Sequence[Place]) -> list[Sides]:
    """Strides from the coarsest map to the pixels, halved at most at each step.

    Raises:
        BackboneError: If one is no power of two.
    """
    goals = [*(place.stride for place in places), (1,) * len(places[0].stride)]
    found = [goals[0]]
    for goal in goals[1:]:
        ratios = [a / b for a, b in zip(found[-1], goal, strict=True)]
        if any(ratio < 1 or not math.log2(ratio).is_integer() for ratio in ratios):
            raise BackboneError(
                f"'spark' cannot go up from a stride of {found[-1]} to {goal}.",
                expected="strides that are powers of two",
            )
        while found[-1] != goal:
            steps = zip(found[-1], goal, strict=True)
            found.append(tuple(a // 2 if a > b else a for a, b in steps))
    return found


def _initialise(module: nn.Module) -> None:
    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    if isinstance(module, tuple(UP.values())):
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, tuple(CONV.values())):
        nn.init.trunc_normal_(weight, std=0.02)
    else:
        return
    if bias is not None:
        nn.init.zeros_(bias)
