"""Turning, scaling and shearing pictures in one resampling; what a warp uncovers is a mirror image.

Black corners would tell a turned picture from an upright one: a shortcut that a network learns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from scipy.ndimage import affine_transform

from galenic.core.config import Config

Array = np.ndarray[Any, np.dtype[Any]]
Draw = dict[str, Any]


class WarpConfig(Config):
    """How far a picture or a volume may be warped."""

    rotate: float = Field(
        0.0, ge=0, le=180, description="Largest turn, in degrees; of a volume, about each axis."
    )
    zoom: float = Field(0.0, ge=0, lt=1, description="Largest change of size, as a share.")
    shear: float = Field(0.0, ge=0, lt=1, description="Largest shear, as a share of the side.")


def draw(config: WarpConfig, rng: np.random.Generator) -> Draw:
    """Angle, size and shears of one picture."""
    return {
        "degrees": float(rng.uniform(-config.rotate, config.rotate)),
        "size": float(1 + rng.uniform(-config.zoom, config.zoom)),
        "shear": rng.uniform(-config.shear, config.shear, 2).tolist(),
    }


def apply(values: Array, draw: Draw) -> Array:
    """Pictures [..., H, W] turned anticlockwise, made larger and sheared as drawn."""
    down, right = draw["shear"]
    sheared = np.array([[1.0, down], [right, 1.0]])
    return warp(values, turn(draw["degrees"]) @ sheared * draw["size"])


def turn(degrees: float) -> Array:
    """The matrix [2, 2] of an anticlockwise turn, of (row, column); quarter turns are exact."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.round([np.cos(angle), np.sin(angle)], 15)
    return np.array([[cosine, -sine], [sine, cosine]])


def warp(values: Array, matrix: Array, shift: tuple[float, float] = (0.0, 0.0)) -> Array:
    """Pictures [..., H, W] under a map of (row, column) about the centre, linearly resampled.

    Args:
        values: Pictures.
        matrix: [2, 2], from where a point is to where it goes.
        shift: Pixels that all move afterwards, down and to the right.
    """
    back = np.linalg.inv(matrix)
    centre = (np.array(values.shape[-2:]) - 1) / 2
    offset = centre - back @ (centre + np.asarray(shift))
    flat = values.reshape(-1, *values.shape[-2:]).astype(np.float32)
    out = [affine_transform(part, back, offset, order=1, mode="reflect") for part in flat]
    return np.stack(out).reshape(values.shape)
