"""Stains of a section under the microscope, varied apart from each other.

Haematoxylin, eosin and DAB are separated in optical density, each is scaled and shifted, and they
are put together again (Ruifrok and Johnston, 2001; Tellez et al., IEEE TMI 2018). A shift of hue
would give colours that no stain has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from galenic.core.config import Config
from galenic.core.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
Draw = dict[str, Any]
# Optical density of red, green and blue, a row a stain.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
# Light below this is black: its density would be infinite.
DARK = 1e-6


class StainConfig(Config):
    """How far the stains of a picture may vary."""

    sigma: float = Field(
        0.05, ge=0, lt=1, description="Largest change of gain and offset of each stain."
    )


def draw(config: StainConfig, rng: np.random.Generator) -> Draw:
    """Gain and offset of each stain."""
    return {
        "gain": (1 + rng.uniform(-config.sigma, config.sigma, 3)).tolist(),
        "offset": rng.uniform(-config.sigma, config.sigma, 3).tolist(),
    }


def apply(values: Array, draw: Draw) -> Array:
    """Pictures [..., 3, H, W] of intensities 0..1 with their stains changed as drawn.

    Raises:
        DataError: If a picture has no red, green and blue.
    """
    if values.ndim < 3 or values.shape[-3] != 3:
        raise DataError(
            f"A picture of shape {values.shape} has no stains to vary.",
            expected="red, green and blue",
            next_step="input.augment.stain=null",
        )
    density = -np.log10(np.clip(values.astype(np.float64), DARK, 1.0))
    stains = np.einsum("sc,...chw->...shw", np.linalg.inv(STAINS).T, density)
    gain, offset = (np.reshape(draw[key], (3, 1, 1)) for key in ("gain", "offset"))
    changed = np.einsum("cs,...shw->...chw", STAINS.T, stains * gain + offset)
    return np.clip(10.0**-changed, 0.0, 1.0).astype(np.float32)
