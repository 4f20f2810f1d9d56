"""Augmentation: draw first, then apply, so that a draw can be recorded and repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from galenic.core.config import Config

Array = np.ndarray[Any, np.dtype[Any]]


class AugmentConfig(Config):
    """What may be varied in training."""

    flip: bool = Field(False, description="Mirror left and right, every other time.")
    shift: float = Field(0.05, ge=0, lt=0.5, description="Largest shift, as a share of the side.")
    intensity: float = Field(0.1, ge=0, description="Largest change of gain and offset.")
    noise: float = Field(0.0, ge=0, description="Standard deviation of added noise.")
    channel_drop: float = Field(0.0, ge=0, lt=1, description="Chance that a channel is zeroed.")
    one_channel: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Chance that one channel, drawn, stands alone: the others are zeroed, and a "
        "network of one lead is fed that lead of the record instead of its own.",
    )
    rotate_limb: float = Field(
        0.0, ge=0, le=180, description="Largest turn of the heart's axis, in degrees (ECG)."
    )


Draw = dict[str, Any]


def draw(config: AugmentConfig, rng: np.random.Generator, shape: tuple[int, ...]) -> Draw:
    """All random numbers for one input [C, ...]."""
    drawn = {
        "flip": config.flip and bool(rng.random() < 0.5),
        "shift": [round(rng.uniform(-config.shift, config.shift) * side) for side in shape[-2:]],
        "gain": float(1 + rng.uniform(-config.intensity, config.intensity)),
        "offset": float(rng.uniform(-config.intensity, config.intensity)),
        "noise": (config.noise, int(rng.integers(2**31))),
        "dropped": np.flatnonzero(rng.random(shape[0]) < config.channel_drop).tolist(),
    }
    # Drawn last, and only where asked for: what older settings draw stays the same.
    if config.one_channel and rng.random() < config.one_channel:
        kept = int(rng.integers(shape[0]))
        drawn["dropped"] = [place for place in range(shape[0]) if place != kept]
    most = config.rotate_limb
    return drawn | {"rotation": float(rng.uniform(-most, most)) if most else 0.0}


def apply(values: Array, draw: Draw) -> Array:
    """A new array [C, ...] changed as drawn; what a shift uncovers repeats the edge."""
    result = values[..., ::-1] if draw["flip"] else values
    for axis, by in zip((-2, -1), draw["shift"], strict=True):
        if values.ndim > -axis:
            places = np.clip(np.arange(result.shape[axis]) - by, 0, result.shape[axis] - 1)
            result = np.take(result, places, axis=axis)
    result = result * np.float32(draw["gain"]) + np.float32(draw["offset"])
    level, seed = draw["noise"]
    if level:
        noise = np.random.default_rng(seed).normal(0, level, result.shape)
        result = result + noise.astype(np.float32)
    if draw["dropped"] and len(draw["dropped"]) < len(result):
        result[draw["dropped"]] = 0
    return np.ascontiguousarray(result, dtype=np.float32)
