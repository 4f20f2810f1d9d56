"""What a reader gives: arrays with their physical meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Image:
    """A picture.

    Attributes:
        pixels: uint8, uint16 or float32 [C, H, W].
        spacing_mm: Size of a pixel (row, column) in mm, where known.
    """

    pixels: Array
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Volume:
    """A stack of slices.

    Attributes:
        voxels: float32 [C, D, H, W].
        affine: Voxel (W, H, D order of the file's own axes) to world, 4 x 4, in mm.
        spacing_mm: (D, H, W) in mm, where known.
    """

    voxels: Array
    affine: Array | None = None
    spacing_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Signal:
    """Channels over time: an ECG, a sound.

    Attributes:
        samples: float32 [C, T], in the unit of the file (mV, or -1..1 for sound).
        rate_hz: Samples a second.
        channels: Name of each channel.
    """

    samples: Array
    rate_hz: float
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a file says about itself before its content is read.

    Attributes:
        shape: As the reader's array would have it, channels first where the header names them.
        spacing_mm: Distances along the last axes in mm, where known.
        affine: As the reader's :class:`Volume` would have it, where known.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None = None
    affine: Array | None = None


Value = Image | Volume | Signal | str
