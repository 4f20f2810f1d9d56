"""A folder of DICOM slices as one volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.errors import DataError
from galenic.data.readers import _frames, dicom
from galenic.data.readers._guard import guarded, require_size
from galenic.data.readers.nifti import canonical, nibabel_or_error, oriented
from galenic.data.values import Header, Volume

MODALITY = "volume"
SUFFIXES: tuple[str, ...] = ()
Array = np.ndarray[Any, np.dtype[Any]]
# Distances between neighbours may differ by this share of the median before a slice is missing.
UNEVEN = 0.2
TAGS = ["SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns"]
MORE_TAGS = ["PixelSpacing", "ImagerPixelSpacing", "PhotometricInterpretation"]


def takes(path: Path) -> bool:
    """Whether a folder holds DICOM files."""
    return path.is_dir() and any(_is_slice(child) for child in path.iterdir())


def parts(path: Path) -> list[Path]:
    """The slices, by name."""
    return sorted(child for child in path.iterdir() if _is_slice(child))


def read(path: Path, window: str | tuple[float, float] | None = None) -> Volume:
    """Voxels [1, D, H, W] in RAS orientation, in the unit of the modality.

    Slices are ordered by their position along the normal of the slice plane, whatever their
    files are called. Rescale slope and intercept of each are applied; of windows the one named
    alone, since those of the files may differ from slice to slice. MONOCHROME1 is turned over the
    whole stack, so that one tissue keeps one value.

    Args:
        path: The folder.
        window: A name of :data:`galenic.data.readers.dicom.WINDOWS`, or centre and width.

    Raises:
        DataError: If a slice is broken, the folder holds several series, slices differ in size,
            pixel spacing, direction or kind of grey, or one is missing between its neighbours.
    """
    with guarded(path, "DICOM series"):
        files = parts(path)
        headers, places = _headers(files)
        order = np.argsort(places, kind="stable")
        require_size((len(files), int(headers[0].Rows), int(headers[0].Columns)), "DICOM series")
        affine = _affine(headers[order[0]], _step(places[order]))
        stack = np.stack([dicom.read_slice(files[place]) for place in order], axis=-1)
        if window is not None:
            stack = dicom.windowed(stack, window)
        stack = dicom.turned(headers[0], stack).transpose(1, 0, 2)
        return oriented(nibabel_or_error().Nifti1Image(stack, affine))


def header(path: Path) -> Header:
    """Slices, rows and columns, with their distances; no pixel is read.

    Raises:
        DataError: As :func:`read`, if the slices do not belong together.
    """
    with guarded(path, "DICOM series"):
        files = parts(path)
        headers, places = _headers(files)
        first, step = headers[np.argmin(places)], _step(np.sort(places))
        rows, columns = int(first.Rows), int(first.Columns)
        spacing = _frames.pixel_spacing(first)
        if spacing is None:
            return Header((len(files), rows, columns))
        affine = canonical(_affine(first, step), (columns, rows, len(files)))
        return Header((len(files), rows, columns), (step, *spacing), affine)


def _affine(first: Any, step: float) -> Array:
    """Of voxels [X, Y, Z] of a stack, by its first slice and the distance of the others."""
    across, down = _directions(first)
    row_mm, column_mm = _frames.pixel_spacing(first) or (1.0, 1.0)
    # DICOM's axes point left and back, NIfTI's right and forward.
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * column_mm, down * row_mm
    affine[:3, 2] = np.cross(across, down) * step
    affine[:3, 3] = first.ImagePositionPatient
    affine[:2] *= -1
    return affine


def _is_slice(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(dicom.SUFFIXES)


def _headers(files: list[Path]) -> tuple[list[Any], Array]:
    """What each slice says of itself, and its place in mm along the normal of their plane."""
    headers = [_header(file) for file in files]
    _require_one_series(headers)
    normal = np.cross(*_directions(headers[0]))
    return headers, np.array([np.dot(h.ImagePositionPatient, normal) for h in headers])


def _header(path: Path) -> Any:
    header = dicom.pydicom_or_error().dcmread(
        path, stop_before_pixels=True, specific_tags=[*TAGS, *MORE_TAGS]
    )
    for tag in TAGS[1:]:
        if header.get(tag) is None:
            raise DataError(
                f"'{path.name}' has no {tag}.", expected="slices with position and direction"
            )
    return header


def _require_one_series(headers: list[Any]) -> None:
    traits = {
        "series": [str(header.get("SeriesInstanceUID")) for header in headers],
        "sizes": [f"{header.Rows} x {header.Columns}" for header in headers],
        "pixel spacings": [_spacing_of(header) for header in headers],
        "directions": [
            str(np.round(np.array(header.ImageOrientationPatient, float), 3)) for header in headers
        ],
        "kinds of grey": [str(header.get("PhotometricInterpretation")) for header in headers],
    }
    for what, values in traits.items():
        found = len(set(values))
        if found > 1:
            raise DataError(
                f"The folder holds slices of {found} {what}.",
                expected="one series a folder",
                next_step="Move each series to a folder of its own.",
            )


def _spacing_of(header: Any) -> str:
    values = _frames.pixel_spacing(header)
    return "" if values is None else str(np.round(values, 3))


def _directions(header: Any) -> tuple[Array, Array]:
    cosines = np.array(header.ImageOrientationPatient, dtype=float)
    return cosines[:3], cosines[3:]


def _step(places: Array) -> float:
    """Distance between neighbours in mm, checked for gaps and copies."""
    if len(places) == 1:
        return 1.0
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-3:
        raise DataError("Two slices of the series lie at one position.", expected="one a position")
    odd = int((np.abs(gaps - usual) > UNEVEN * usual).sum())
    if odd:
        raise DataError(
            f"The slices are unevenly spaced at {odd} of {len(gaps)} places "
            f"({gaps.min():.2f} to {gaps.max():.2f} mm): slices are missing.",
            expected=f"{usual:.2f} mm throughout",
        )
    return usual
