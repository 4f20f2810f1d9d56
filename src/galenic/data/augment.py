"""Augmentation: draw first, then apply, so that a draw can be recorded and repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from galenic.core.config import Config
from galenic.core.errors import ConfigError
from galenic.data import crop, randaugment, stain, warp, warp3d
from galenic.data.crop import Shares
from galenic.data.randaugment import RandAugmentConfig
from galenic.data.stain import StainConfig
from galenic.data.warp import WarpConfig

Array = np.ndarray[Any, np.dtype[Any]]
# Ways to vary a picture that have a module, a key and a draw of their own, in their order.
OF_PICTURES: dict[str, Any] = {"warp": warp, "stain": stain, "randaugment": randaugment}
# Axes of a volume [C, D, H, W].
VOLUME = 4


class AugmentConfig(Config):
    """What may be varied in training."""

    flip: bool = Field(False, description="Mirror left and right, every other time.")
    turns: bool = Field(False, description="Quarter turns; half turns of what is not square.")
    shift: float = Field(0.05, ge=0, lt=0.5, description="Largest shift, as a share of the side.")
    intensity: float = Field(0.1, ge=0, description="Largest change of gain and offset.")
    gamma: float = Field(
        0.0, ge=0, description="Largest logarithm of the power that intensities 0..1 are raised to."
    )
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
    crop: Shares | None = Field(
        None,
        description="Least and largest share of the picture's area that a random crop keeps, "
        "[0.5, 1] say; it is cut from the picture as stored and resized by cubics.",
    )
    warp: WarpConfig | None = Field(None, description="Turns, sizes and shears.")
    stain: StainConfig | None = Field(None, description="Stains of a section (H&E and DAB).")
    randaugment: RandAugmentConfig | None = Field(
        None, description="A few operations of fifteen, drawn anew for every picture."
    )


Draw = dict[str, Any]


def draw(
    config: AugmentConfig,
    rng: np.random.Generator,
    shape: tuple[int, ...],
    voxel: Sequence[float] | None = None,
) -> Draw:
    """All random numbers for one input [C, ...]; of four axes, it is a volume.

    Args:
        config: What may be varied.
        rng: Of the draw.
        shape: Of the input.
        voxel: Size of a voxel along (D, H, W) in any unit; None for cubes.

    Raises:
        ConfigError: If what is asked for is for pictures, and the input is none.
    """
    # A signal has no rows to shift: of its two numbers, the last alone is used.
    sides = shape[-2:] if len(shape) < VOLUME else shape[1:]
    drawn = {
        "flip": config.flip and bool(rng.random() < 0.5),
        "shift": [round(rng.uniform(-config.shift, config.shift) * side) for side in sides],
        "gain": float(1 + rng.uniform(-config.intensity, config.intensity)),
        "offset": float(rng.uniform(-config.intensity, config.intensity)),
        "noise": (config.noise, int(rng.integers(2**31))),
        "dropped": np.flatnonzero(rng.random(shape[0]) < config.channel_drop).tolist(),
    }
    # Drawn last, and only where asked for: what older settings draw stays the same.
    if config.one_channel and rng.random() < config.one_channel:
        kept = int(rng.integers(shape[0]))
        drawn["dropped"] = [place for place in range(shape[0]) if place != kept]
    if config.turns and len(shape) > 2:
        square = shape[-1] == shape[-2]
        drawn["turns"] = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
    for name, way in OF_PICTURES.items():
        asked = getattr(config, name)
        if asked is None:
            continue
        _require_picture(name, shape)
        if name == "warp" and len(shape) == VOLUME:
            drawn[name] = warp3d.draw(asked, rng, voxel)
        else:
            drawn[name] = way.draw(asked, rng)
    most = config.rotate_limb
    drawn["rotation"] = float(rng.uniform(-most, most)) if most else 0.0
    drawn["crop"] = crop.draw(config.crop, rng) if config.crop else None
    if config.gamma:
        _require_picture("gamma", shape)
        drawn["gamma"] = float(np.exp(rng.uniform(-config.gamma, config.gamma)))
    return drawn


def carried(drawn: Draw, before: tuple[int, ...], after: tuple[int, ...]) -> Draw:
    """The same draw of the same picture, for another network that reads it.

    Args:
        drawn: For the first network.
        before: What that reads, [C, H, W].
        after: What the other reads. With other channels, none of its is dropped.
    """
    sides = zip(drawn["shift"], before[-2:], after[-2:], strict=True)
    shift = [round(by * new / old) for by, old, new in sides]
    return drawn | {"shift": shift, "dropped": drawn["dropped"] if before[0] == after[0] else []}


def _require_picture(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) < 3:
        off = 0 if name == "gamma" else "null"
        raise ConfigError(
            f"An input of shape {shape} is no picture.",
            where=f"input.augment.{name}",
            next_step=f"input.augment.{name}={off}",
        )


def apply(values: Array, draw: Draw) -> Array:
    """A new array [C, ...] changed as drawn.

    What a shift uncovers repeats the edge. A volume that is warped is turned, flipped and shifted
    by the same resampling, and what that uncovers is a mirror image.
    """
    whole = len(draw["shift"]) == 3 and "warp" in draw
    result = _warped(values, draw) if whole else _turned(values, draw)
    for name, way in OF_PICTURES.items():
        if name in draw and not (whole and name == "warp"):
            result = way.apply(result, draw[name])
    if not whole:
        result = _shifted(result, draw["shift"])
    result = np.ascontiguousarray(result, dtype=np.float32)
    if np.may_share_memory(result, values):
        result = result.copy()
    return _intensities(result, draw)


def _turned(values: Array, draw: Draw) -> Array:
    """A view."""
    turns = draw.get("turns", 0)
    result = np.rot90(values, turns, axes=(-2, -1)) if turns else values
    return result[..., ::-1] if draw["flip"] else result


def _shifted(values: Array, shift: Sequence[int]) -> Array:
    for axis, by in enumerate(shift, -len(shift)):
        if by and values.ndim > -axis:
            places = np.clip(np.arange(values.shape[axis]) - by, 0, values.shape[axis] - 1)
            values = np.take(values, places, axis=axis)
    return values


def _warped(values: Array, draw: Draw) -> Array:
    """A volume after everything that moves it."""
    moves = np.eye(3)
    moves[1:, 1:] = warp.turn(90.0 * draw.get("turns", 0))
    if draw["flip"]:
        moves[2] *= -1
    return warp3d.warp(values, warp3d.matrix(draw["warp"]) @ moves, draw["shift"])


def _noise(shape: tuple[int, ...], level: float, seed: int, *, single: bool) -> Array:
    """Gaussian; drawn in single precision, which needs no second array, or in double."""
    rng = np.random.default_rng(seed)
    if single:
        drawn: Array = rng.standard_normal(shape, np.float32)
        return np.multiply(drawn, np.float32(level), out=drawn)
    return rng.normal(0, level, shape).astype(np.float32)


def _intensities(result: Array, draw: Draw) -> Array:
    """Gamma, gain, offset, noise and dropped channels, in place."""
    if "gamma" in draw:
        np.maximum(result, 0, out=result)
        np.power(result, np.float32(draw["gamma"]), out=result)
    result *= np.float32(draw["gain"])
    result += np.float32(draw["offset"])
    level, seed = draw["noise"]
    if level:
        result += _noise(result.shape, level, seed, single=len(draw["shift"]) == 3)
    # Slices of a volume stand before the channels of their network.
    channels = np.moveaxis(result, max(0, result.ndim - len(draw["shift"]) - 1), 0)
    if len(draw["dropped"]) < len(channels):
        channels[draw["dropped"]] = 0
    return result
