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
Array = np.ndarray[Any, np.dtype[Any]]
# NIfTI's codes of metre and micron, the low bits of its units; all else is taken as mm.
UNIT_BITS, IN_MM = 7, {1: 1e3, 3: 1e-3}


def read(path: Path) -> Volume:
    """Voxels [C, D, H, W] in RAS orientation: D from foot to head, H to the front, W to the right.

    Raises:
        DataError: If the file is broken, has no three axes, or holds NaN.
    """
    with guarded(path, "NIfTI volume"):
        opened = _opened(path)
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
    affine = _affine(turned)
    x, y, z = _spacing(affine)
    return Volume(require_finite(voxels, "volume"), affine, (z, y, x))


def header(path: Path) -> Header:
    """Shape and spacing by the file's own axes, without the voxels."""
    with guarded(path, "NIfTI volume"):
        opened = _opened(path)
        affine = _affine(opened)
        place = canonical(affine, opened.shape[:3])
        return Header(tuple(opened.shape), _spacing(affine), place)


def canonical(affine: Array, shape: tuple[int, ...]) -> Array:
    """The affine that a volume [X, Y, Z] has after :func:`oriented`."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    found: Array = affine @ inv_ornt_aff(io_orientation(affine), shape)
    return found


def _opened(path: Path) -> Any:
    """The file, of which no voxel is read."""
    opened = nibabel_or_error().load(path)
    if len(opened.shape) not in (3, 4):
        raise DataError(
            f"The volume has {len(opened.shape)} axes.", expected="three, or four with time"
        )
    return opened


def _affine(image: Any) -> Array:
    """Voxel to world, in mm."""
    scale = IN_MM.get(int(image.header["xyzt_units"]) & UNIT_BITS, 1.0)
    return np.diag([scale, scale, scale, 1.0]) @ image.affine


def _spacing(affine: Array) -> tuple[float, ...]:
    """Distances of voxels along their axes, which the affine alone tells with certainty."""
    from nibabel.affines import voxel_sizes

    return tuple(float(side) for side in voxel_sizes(affine))


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
