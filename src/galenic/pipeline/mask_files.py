"""Masks that were predicted, as files of the picture's own kind, and drawn over it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from scipy import ndimage

from galenic.core.files import atomic_write
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.masks import Masks, values_of
from galenic.data.readers import read
from galenic.data.readers.nifti import nibabel_or_error
from galenic.data.values import Image, Volume
from galenic.pipeline.pictures import SAID, TRUE, enlarged, png, write_overlay

Array = np.ndarray[Any, np.dtype[Any]]
FOLDER = "masks"


def path_of(row: int, axes: int) -> str:
    """Where the predicted mask of a row lies in its run."""
    return f"{FOLDER}/{row}.{'png' if axes == 2 else 'nii.gz'}"


def write(run: Run, cohort: Cohort, row: int, values: Array) -> None:
    """Write a predicted mask: a PNG, or a NIfTI file that lies in space as its picture does.

    Args:
        run: Where to write.
        cohort: The samples.
        row: Which one.
        values: As the true masks have them, [H, W] or [D, H, W].
    """
    small = values.astype(np.uint8 if values.max() < 256 else np.uint16)
    target = run.path / path_of(row, values.ndim)
    if values.ndim == 2:
        atomic_write(target, png(Pillow.fromarray(small)))
        return
    picture = next(iter(cohort.read(row).values()))
    affine = picture.affine if isinstance(picture, Volume) else None
    image = nibabel_or_error().Nifti1Image(
        small.transpose(2, 1, 0), np.eye(4) if affine is None else affine
    )
    # Without a time stamp: the same mask is the same file.
    atomic_write(target, gzip.compress(image.to_bytes(), mtime=0))


def read_back(run: Run, row: int, axes: int) -> Array:
    """The values of a mask that :func:`write` wrote."""
    return values_of(read(Path(run.path / path_of(row, axes))))


def overlay(run: Run, cohort: Cohort, row: int, masks: Masks, reason: str) -> dict[str, Any]:
    """Write a picture with the outlines of the true mask in green and of ours in orange.

    Of a volume the slice with most of the true mask is shown.

    Returns:
        Row, reason and file of the picture.
    """
    value, true = next(iter(cohort.read(row).values())), masks.codes(row)
    ours = read_back(run, row, true.ndim)
    if isinstance(value, Volume):
        depth = int((true > 0).sum(axis=(1, 2)).argmax())
        value, true, ours = Image(value.voxels[:, depth]), true[depth], ours[depth]
    large, _ = enlarged(value)
    pixels = np.asarray(large).copy()
    for mask, colour in ((true, TRUE), (ours, SAID)):
        pixels[_outline(mask, large.size)] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return write_overlay(run, row, Pillow.fromarray(pixels), reason)


def _outline(mask: Array, size: tuple[int, int]) -> Array:
    """Where the value of a mask changes, once it is brought to `size` (width, height)."""
    wide = Pillow.fromarray(mask.astype(np.int32)).resize(size, Pillow.Resampling.NEAREST)
    plain = np.asarray(wide)
    return ndimage.grey_erosion(plain, size=3) != plain
