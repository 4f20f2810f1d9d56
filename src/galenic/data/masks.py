"""Masks of a cohort: read, held against their pictures, and moved along with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np

from galenic.core.errors import DataError
from galenic.core.progress import track
from galenic.data import augment
from galenic.data.cohort import Cohort
from galenic.data.crop import Box, cut
from galenic.data.values import Header, Image, Volume

Array = np.ndarray[Any, np.dtype[Any]]
# Relative difference of two pixel spacings, or directions, that are meant to be one.
SAME_SPACING = 1e-2
# Distance in voxels of two places that are meant to be one.
SAME_PLACE = 0.25
# Decoded masks that are kept: the slices of a volume ask for the same one.
RECENT = 32
# More values than this are greys, unless they are named.
MOST_VALUES = 40
# What changes intensities alone; the mask stays as it is.
STILL = {"gain": 1.0, "offset": 0.0, "noise": (0.0, 0), "dropped": []}
OF_INTENSITY = ("stain", "randaugment", "gamma")


@dataclass(frozen=True)
class MaskFaults:
    """Rows whose mask is not as it should be.

    Attributes:
        missing: Whose cell is blank.
        size: Whose mask has other sides than the picture.
        spacing: Whose mask has other distances between its pixels.
        place: Whose mask has the voxels of the picture, and by its affine elsewhere in space.
        empty: Whose mask is background everywhere.
        broken: Row and reason of what could not be read.
    """

    missing: tuple[int, ...]
    size: tuple[int, ...]
    spacing: tuple[int, ...]
    place: tuple[int, ...]
    empty: tuple[int, ...]
    broken: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class MaskSurvey:
    """What all masks of a cohort hold.

    Attributes:
        values: Of the structures, ascending; 0 is background.
        shapes: Of each row's mask; () where there is none.
        held: Values in each row's mask, background left out.
        faults: What is wrong.
    """

    values: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    held: tuple[frozenset[int], ...]
    faults: MaskFaults


def survey(cohort: Cohort, threshold: float | None = None) -> MaskSurvey:
    """Read every mask once, and hold it against the header of its picture.

    Args:
        cohort: Its label names masks.
        threshold: As for :class:`Masks`.
    """
    targets = cohort.targets()
    shapes: list[tuple[int, ...]] = [()] * len(cohort)
    held: list[frozenset[int]] = [frozenset()] * len(cohort)
    size, spacing, place, empty, broken = [], [], [], [], []
    for row in track(np.flatnonzero(targets >= 0).tolist(), "reading every mask"):
        try:
            mask = values_of(cohort.read_mask(row), threshold)
            own = cohort.mask_header(row)
        except DataError as error:
            broken.append((row, error.found))
            continue
        shapes[row] = mask.shape
        held[row] = frozenset(np.unique(mask).tolist()) - {0}
        if not held[row]:
            empty.append(row)
        picture = _picture(cohort, row)
        if own is not None and picture is not None:
            if not _same_size(own, picture):
                size.append(row)
            elif not _same_spacing(own, picture):
                spacing.append(row)
            elif not _same_place(own, picture, mask.shape[::-1]):
                place.append(row)
    missing = np.flatnonzero(targets < 0).tolist()
    faults = MaskFaults(
        tuple(missing), tuple(size), tuple(spacing), tuple(place), tuple(empty), tuple(broken)
    )
    values = sorted(set().union(*held)) if held else []
    return MaskSurvey(tuple(values), tuple(shapes), tuple(held), faults)


def _picture(cohort: Cohort, row: int) -> Header | None:
    """The header of a row's picture; None also where it cannot be read: that is told elsewhere."""
    try:
        return next(iter(cohort.header(row).values()))
    except DataError:
        return None


def _same_size(one: Header, other: Header) -> bool:
    # By the files' own axes, which may be turned: the exact sides are held together when read.
    pairs = zip(sorted(one.shape[:3]), sorted(other.shape[:3]), strict=False)
    return all(a == b for a, b in pairs)


def _same_spacing(one: Header, other: Header) -> bool:
    if one.spacing_mm is None or other.spacing_mm is None:
        return True
    # Frames of one file may not say how far apart they are.
    few, many = sorted((sorted(one.spacing_mm), sorted(other.spacing_mm)), key=len)
    return any(np.allclose(few, part, rtol=SAME_SPACING) for part in combinations(many, len(few)))


def _same_place(one: Header, other: Header, sides: tuple[int, ...]) -> bool:
    """Whether voxels [W, H, D] of these sides lie at one place, to the rounding of the headers."""
    if one.affine is None or other.affine is None:
        return True
    size, way = _axes(other.affine)
    if np.abs(way - _axes(one.affine)[1]).max() > SAME_SPACING:
        return False
    corners = np.array([*product(*((0, side - 1) for side in sides))])
    off = (one.affine - other.affine) @ np.c_[corners, np.ones(len(corners))].T
    away = np.abs(way.T @ off[:3]) / size[:, None]
    # Rounding of a spacing adds up from the corner at which the file begins.
    return bool(away.max(axis=0).min() <= SAME_PLACE)


def _axes(affine: Array) -> tuple[Array, Array]:
    """Sizes of a voxel, and its axes as columns of length 1."""
    size: Array = np.linalg.norm(affine[:3, :3], axis=0)
    return size, affine[:3, :3] / size


def values_of(value: Any, threshold: float | None = None) -> Array:
    """The whole numbers of a mask, int64 [H, W] or [D, H, W].

    Args:
        value: What its reader gave.
        threshold: From here on a pixel is 1, below it 0; None for the numbers as they are.

    Raises:
        DataError: If it is neither picture nor volume, in colours, or holds fractions.
    """
    if not isinstance(value, Image | Volume):
        raise DataError("A mask is neither a picture nor a volume.", expected="PNG, TIFF or NIfTI")
    layers = value.pixels if isinstance(value, Image) else value.voxels
    if (layers != layers[:1]).any():
        raise DataError(
            "A mask has colours.",
            expected="one number a pixel: 0 for background, 1, 2, ... for structures",
        )
    plain = layers[0]
    if threshold is not None:
        return (plain >= threshold).astype(np.int64)
    if (plain != np.round(plain)).any() or plain.min() < 0:
        raise DataError("A mask holds fractions or negative numbers.", expected="0, 1, 2, ...")
    return plain.astype(np.int64)


class Masks:
    """Masks as codes: 0 is background, 1 the first structure.

    Args:
        cohort: Its label names masks.
        values: Of the structures in the files, in the order of their codes.
        threshold: Of masks in greys: from here on a pixel is the structure; None where the values
            are structures.
        source: Row whose mask stands for each row's own; None for its own.
    """

    def __init__(
        self,
        cohort: Cohort,
        values: tuple[int, ...],
        threshold: float | None = None,
        source: Array | None = None,
    ) -> None:
        self.cohort, self.values = cohort, np.array([0, *values])
        self.threshold, self.source = threshold, source
        # The file of a row that was asked for lately is not read again.
        self._held = lru_cache(RECENT)(self._read)

    def codes(self, row: int) -> Array:
        """int64 [H, W] or [D, H, W]."""
        return self._held(row if self.source is None else int(self.source[row]))[0]

    def spacing(self, row: int) -> tuple[float, ...]:
        """Distances of a row's own pixels along its axes in mm; 1 where nobody says."""
        return self._held(row)[1]

    def _read(self, row: int) -> tuple[Array, tuple[float, ...]]:
        value = self.cohort.read_mask(row)
        raw = values_of(value, self.threshold)
        codes = np.searchsorted(self.values, raw)
        strange = self.values[np.minimum(codes, len(self.values) - 1)] != raw
        if strange.any():
            raise DataError(
                f"A mask holds {raw[strange].flat[0]}, which is no structure.",
                where=f"{self.cohort.name}, row {row}",
                expected=", ".join(map(str, self.values)),
            )
        spacing = value.spacing_mm
        return codes, (1.0,) * codes.ndim if spacing is None else tuple(spacing)


def nearest(codes: Array, size: tuple[int, ...], crop: Box | None = None) -> Array:
    """Codes brought to `size`, each position taking the nearest one.

    Args:
        codes: In the size of the picture as stored.
        size: The new sides.
        crop: The part of the picture that is kept; None for all of it.
    """
    codes = codes if crop is None else cut(codes, crop)
    places = [
        ((np.arange(to) + 0.5) * have / to).astype(int)
        for have, to in zip(codes.shape, size, strict=True)
    ]
    return codes[np.ix_(*places)]


def moved(codes: Array, draw: augment.Draw, classes: int) -> Array:
    """Codes [H, W] or [D, H, W] moved as an augmentation moves their picture.

    Args:
        codes: In the size of the network's input, and cropped as drawn.
        draw: Of :func:`galenic.data.augment.draw`.
        classes: Codes there are, background included.
    """
    geometry = {key: value for key, value in draw.items() if key not in OF_INTENSITY} | STILL
    shares = (codes == np.arange(classes).reshape(-1, *(1,) * codes.ndim)).astype(np.float32)
    return augment.apply(shares, geometry).argmax(axis=0)
