"""Turning, scaling, shearing, flipping and shifting volumes in one trilinear resampling.

What a warp uncovers is a mirror image, as in :mod:`galenic.data.warp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from galenic.data.warp import Draw, WarpConfig, turn

Array = np.ndarray[Any, np.dtype[Any]]
# Voxels worked on at a time: what is held of them stays in the processor's cache.
BLOCK = 2**16


def draw(config: WarpConfig, rng: np.random.Generator, voxel: Sequence[float] | None) -> Draw:
    """Angles, size and shears of one volume.

    Args:
        config: How far.
        rng: Of the draw.
        voxel: Size of a voxel along (D, H, W) in any unit; None for cubes.
    """
    return {
        "degrees": rng.uniform(-config.rotate, config.rotate, 3).tolist(),
        "size": float(1 + rng.uniform(-config.zoom, config.zoom)),
        "shear": rng.uniform(-config.shear, config.shear, 6).tolist(),
        "voxel": [1.0] * 3 if voxel is None else [float(side) for side in voxel],
    }


def matrix(draw: Draw) -> Array:
    """[3, 3], from where a voxel is to where it goes, about the centre.

    Turns, shears and sizes are those of the body: a voxel that is longer than wide keeps it whole.
    """
    result = np.eye(3)
    result[~np.eye(3, dtype=bool)] = draw["shear"]
    for axis, degrees in enumerate(draw["degrees"]):
        plane = [other for other in range(3) if other != axis]
        about = np.eye(3)
        about[np.ix_(plane, plane)] = turn(degrees)
        result = about @ result
    voxel = np.asarray(draw["voxel"])
    return result * draw["size"] * voxel / voxel[:, None]


def warp(values: Array, matrix: Array, shift: Sequence[float] = (0.0, 0.0, 0.0)) -> Array:
    """Volumes [C, D, H, W] under a map of (slice, row, column) about the centre, as new float32.

    Args:
        values: Volumes.
        matrix: [3, 3], from where a voxel is to where it goes.
        shift: Voxels that all move afterwards.
    """
    source = np.ascontiguousarray(values, dtype=np.float32)
    deep, high, wide = sides = source.shape[1:]
    back = np.linalg.inv(matrix)
    centre = (np.array(sides) - 1) / 2
    offset = centre - back @ (centre + np.asarray(shift))
    # Where each voxel of a slice comes from, [3, H, W], and what every slice adds to it, [3, D].
    rows, columns = np.arange(high)[:, None], np.arange(wide)
    plane = [(line[1] * rows + line[2] * columns).astype(np.float32) for line in back]
    along = (np.outer(back[:, 0], np.arange(deep)) + offset[:, None]).astype(np.float32)
    out = np.empty_like(source)
    thick = max(1, BLOCK // (high * wide))
    for first in range(0, deep, thick):
        part = slice(first, first + thick)
        places = [
            _folded(plane[axis] + along[axis, part, None, None], sides[axis]) for axis in range(3)
        ]
        _blend(source, places, out[:, part])
    return out


def _folded(places: Array, side: int) -> Array:
    """Positions in 0..side - 1, mirrored at both outer faces; in place."""
    places += np.float32(0.5)
    turns = places * np.float32(0.5 / side)
    np.rint(turns, out=turns)
    turns *= np.float32(2 * side)
    places -= turns
    np.abs(places, out=places)
    places -= np.float32(0.5)
    return np.clip(places, 0, side - 1, out=places)


def _blend(source: Array, places: list[Array], out: Array) -> None:
    """Fill `out` [C, d, H, W] from the eight voxels about each of `places` [3][d, H, W]."""
    first = np.zeros(places[0].shape, np.intp)
    steps: list[int] = []
    for at, side in zip(places, source.shape[1:], strict=True):
        low = np.floor(at)
        at -= low
        first *= side
        first += low.astype(np.intp)
        steps = [step * side for step in steps] + [1]
    near, far = (np.empty((4, *first.shape), np.float32) for _ in range(2))
    # A side of one voxel has no neighbour; that of a last voxel, wherever it is read, weighs nothing.
    deep, high, wide = (
        step if side > 1 else 0 for step, side in zip(steps, source.shape[1:], strict=True)
    )
    corners = (0, high, deep, deep + high)
    for channel, target in zip(source.reshape(len(source), -1), out, strict=True):
        for corner, one, other in zip(corners, near, far, strict=True):
            np.take(channel[corner:], first, out=one, mode="clip")
            np.take(channel[corner + wide :], first, out=other, mode="clip")
        across = _between(near, far, places[2])
        down = _between(across[::2], across[1::2], places[1])
        target[...] = _between(down[0], down[1], places[0])


def _between(near: Array, far: Array, share: Array) -> Array:
    """`share` of the way from `near` to `far`; in place of both."""
    far -= near
    far *= share
    near += far
    return near
