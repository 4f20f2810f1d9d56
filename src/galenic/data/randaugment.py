"""RandAugment on arrays: a few operations, drawn from fifteen, all at one magnitude.

Cubuk et al., NeurIPS 2020, arXiv 1909.13719. Operations and severities are those of
`rand-m6-mstd0.5-inc1` (all grow with the magnitude); an operation that was drawn is applied every
other time. Pictures hold intensities 0..1 of any depth, and need no colours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import Field
from scipy.ndimage import convolve

from galenic.core.config import Config
from galenic.data.warp import turn, warp

Array = np.ndarray[Any, np.dtype[Any]]
Draw = list[tuple[str, float]]
MOST = 10.0
CHANCE = 0.5
BINS = 256
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


class RandAugmentConfig(Config):
    """How much RandAugment changes."""

    magnitude: float = Field(6.0, ge=0, le=MOST, description="Of every operation, 0 to 10.")
    deviation: float = Field(0.5, ge=0, description="Of the magnitude, between operations.")
    count: int = Field(2, ge=1, description="Operations drawn for a picture.")


def draw(config: RandAugmentConfig, rng: np.random.Generator) -> Draw:
    """Operations of one picture in their order, each with its severity."""
    drawn = []
    names = list(OPERATIONS)
    for place in rng.integers(len(names), size=config.count):
        magnitude = np.clip(rng.normal(config.magnitude, config.deviation), 0, MOST)
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if rng.random() < CHANCE:
            name = names[place]
            drawn.append((name, float(SEVERITY[name](magnitude / MOST, sign))))
    return drawn


def apply(values: Array, draw: Draw) -> Array:
    """New pictures [..., C, H, W] of intensities 0..1, float32, changed as drawn."""
    result = values.astype(np.float32)
    for name, severity in draw:
        result = np.clip(OPERATIONS[name](result, severity), 0.0, 1.0)
    return result


def autocontrast(values: Array, _: float) -> Array:
    """Every channel from 0 to 1."""
    low, high = (f(values, axis=(-2, -1), keepdims=True) for f in (np.min, np.max))
    spread = np.where(high > low, high - low, 1.0)
    return np.where(high > low, (values - low) / spread, values)


def equalize(values: Array, _: float) -> Array:
    """Every channel with all intensities equally often, as far as 256 bins tell them apart."""
    edges = np.linspace(0, 1, BINS + 1)
    flat = values.reshape(-1, *values.shape[-2:])
    result = np.empty_like(flat)
    for place, channel in enumerate(flat):
        below = np.concatenate([[0], np.histogram(channel, edges)[0].cumsum()])
        result[place] = np.interp(channel, edges, below / below[-1])
    return result.reshape(values.shape)


def invert(values: Array, _: float) -> Array:
    """Light for dark."""
    return 1 - values


def posterize(values: Array, bits: float) -> Array:
    """As many bits of eight as are left."""
    step = 2.0 ** (8 - bits)
    # 8-bit steps are no exact floats; a hair more keeps one on its own step.
    return np.floor(values * 255 / step + 1e-4) * step / 255


def solarize(values: Array, threshold: float) -> Array:
    """Inverted where it is bright."""
    return np.where(values < threshold, values, 1 - values)


def solarize_add(values: Array, amount: float) -> Array:
    """Brighter where it is dark."""
    return np.where(values < 0.5, np.minimum(values + amount, 1.0), values)


def color(values: Array, factor: float) -> Array:
    """More or less colour; a picture without colours stays as it is."""
    return _blend(_grey(values), values, factor)


def contrast(values: Array, factor: float) -> Array:
    """More or less distance from the mean brightness."""
    return _blend(_grey(values).mean(axis=(-3, -2, -1), keepdims=True), values, factor)


def brightness(values: Array, factor: float) -> Array:
    """More or less distance from black."""
    return values * factor


def sharpness(values: Array, factor: float) -> Array:
    """More or less distance from the smoothed picture; the outermost pixels stay."""
    flat = values.reshape(-1, *values.shape[-2:])
    smooth = flat.copy()
    for place, channel in enumerate(flat):
        smooth[place, 1:-1, 1:-1] = convolve(channel, SMOOTH, mode="nearest")[1:-1, 1:-1]
    return _blend(smooth.reshape(values.shape), values, factor)


def _blend(start: Array, end: Array, factor: float) -> Array:
    return start + np.float32(factor) * (end - start)


def _grey(values: Array) -> Array:
    """The luminance [..., 1, H, W] of three channels; any other picture itself."""
    if values.shape[-3] != 3:
        return values
    return np.einsum("c,...chw->...hw", LUMINANCE, values)[..., None, :, :]


def _shear(values: Array, down: float, right: float) -> Array:
    return warp(values, np.array([[1.0, down], [right, 1.0]]))


def _shift(values: Array, down: float, right: float) -> Array:
    height, width = values.shape[-2:]
    return warp(values, np.eye(2), (down * height, right * width))


OPERATIONS: dict[str, Callable[[Array, float], Array]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "rotate": lambda values, degrees: warp(values, turn(degrees)),
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "shear_x": lambda values, share: _shear(values, 0.0, share),
    "shear_y": lambda values, share: _shear(values, share, 0.0),
    "translate_x": lambda values, share: _shift(values, 0.0, share),
    "translate_y": lambda values, share: _shift(values, share, 0.0),
}


def _factor(level: float, sign: float) -> float:
    return max(0.1, 1 + sign * level * 0.9)


# From a magnitude 0..1 and a sign to what the operation takes.
SEVERITY: dict[str, Callable[[float, float], float]] = {
    "autocontrast": lambda level, sign: 0.0,
    "equalize": lambda level, sign: 0.0,
    "invert": lambda level, sign: 0.0,
    "rotate": lambda level, sign: sign * level * 30,
    "posterize": lambda level, sign: 4 - int(level * 4),
    "solarize": lambda level, sign: 1 - level,
    "solarize_add": lambda level, sign: level * 110 / 255,
    "color": _factor,
    "contrast": _factor,
    "brightness": _factor,
    "sharpness": _factor,
    "shear_x": lambda level, sign: sign * level * 0.3,
    "shear_y": lambda level, sign: sign * level * 0.3,
    "translate_x": lambda level, sign: sign * level * 0.45,
    "translate_y": lambda level, sign: sign * level * 0.45,
}
