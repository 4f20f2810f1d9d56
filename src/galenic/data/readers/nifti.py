"""NIfTI volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.errors import DataError, MissingExtraError
from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.values import Header, Volume

MODALITY = "volume"
SUFFIXES = (".nii", ".nii.gz")


def read(path: Path) -> Volume:
    """Voxels [C, D, H, W] in RAS orientation: D from foot to head, H to the front, W to the right.

    Raises:
        DataError: If the file is broken, has no three axes, or holds NaN.
    """
    nibabel = nibabel_or_error()
    with guarded(path, "NIfTI volume"):
        opened = nibabel.load(path)
        if len(opened.shape) not in (3, 4):
            raise DataError(
                f"The volume has {len(opened.shape)} axes.", expected="three, or four with time"
            )
        require_size(opened.shape, "NIfTI volume")
        return oriented(opened)


def oriented(image: Any) -> Volume:
    """A volume of nibabel's, [X, Y, Z] or [X, Y, Z, C], turned to the axes of :func:`read`.

    Raises:
        DataError: If a value is not finite.
    """
    turned = nibabel_or_error().as_closest_canonical(image)
    values = np.asarray(turned.dataobj, dtype=np.float32)
    values = values[..., None] if values.ndim == 3 else values
    voxels = np.ascontiguousarray(values.transpose(3, 2, 1, 0))
    x, y, z = (float(side) for side in turned.header.get_zooms()[:3])
    return Volume(require_finite(voxels, "volume"), np.asarray(turned.affine), (z, y, x))


def header(path: Path) -> Header:
    """Shape and spacing by the file's own axes, without the voxels."""
    nibabel = nibabel_or_error()
    with guarded(path, "NIfTI volume"):
        opened = nibabel.load(path)
        spacing = tuple(float(side) for side in opened.header.get_zooms()[:3])
        return Header(tuple(opened.shape), spacing)


def nibabel_or_error() -> Any:
    """The library.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError.of("nibabel", "imaging") from None
    return nibabel
