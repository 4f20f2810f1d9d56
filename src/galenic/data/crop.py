"""Random resized crops (Szegedy et al., 2015, section 6), as shares of a picture's sides."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator

Array = np.ndarray[Any, np.dtype[Any]]
# Top, left, height, width.
Box = tuple[float, float, float, float]
# Width over height of a crop; and how often one is drawn before the whole is taken.
ASPECT, TRIES = (3 / 4, 4 / 3), 10


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError("needs two shares of the area, 0 < least <= largest <= 1")
    return value


Shares = Annotated[tuple[float, float], AfterValidator(_ordered)]


def draw(shares: Shares, rng: np.random.Generator) -> Box:
    """A crop that keeps between the two `shares` of the area."""
    for _ in range(TRIES):
        area = rng.uniform(*shares)
        aspect = np.exp(rng.uniform(*np.log(ASPECT)))
        height, width = (area / aspect) ** 0.5, (area * aspect) ** 0.5
        if height <= 1 and width <= 1:
            top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
            return float(top), float(left), float(height), float(width)
    return 0.0, 0.0, 1.0, 1.0


def window(high: int, wide: int, crop: Box) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of what is kept, of at least one pixel."""
    top, left = round(crop[0] * high), round(crop[1] * wide)
    height, width = max(1, round(crop[2] * high)), max(1, round(crop[3] * wide))
    # What rounding adds must not reach over the edge.
    return min(top, high - height), min(left, wide - width), height, width


def cut(picture: Array, crop: Box) -> Array:
    """The part of a picture [..., H, W] that is kept."""
    high, wide = picture.shape[-2:]
    top, left, height, width = window(high, wide, crop)
    return picture[..., top : top + height, left : left + width]
