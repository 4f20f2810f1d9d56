"""DICOM pictures, multi-frame stacks and waveforms. Nothing that identifies a patient leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.errors import DataError, MissingExtraError
from galenic.data.readers import _frames
from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.readers._waveform import waveform
from galenic.data.values import Header, Image, Signal, Volume

Array = np.ndarray[Any, np.dtype[Any]]
MODALITY = "image"
SUFFIXES = (".dcm", ".dicom")
# Centre and width in Hounsfield units.
WINDOWS = {
    "lung": (-600.0, 1500.0),
    "soft": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
}
HEADER_TAGS = ["Rows", "Columns", *_frames.TAGS]


def modality(path: Path) -> str:
    """`ecg` for a waveform, `volume` for several frames, else `image`; reads the header alone."""
    with guarded(path, "DICOM file"):
        data = pydicom_or_error().dcmread(
            path, stop_before_pixels=True, specific_tags=["SOPClassUID", "NumberOfFrames"]
        )
        if "SOPClassUID" in data and "Waveform" in data.SOPClassUID.name:
            return "ecg"
        return "volume" if int(data.get("NumberOfFrames") or 1) > 1 else "image"


def read(path: Path, window: str | tuple[float, float] | None = None) -> Image | Volume | Signal:
    """Pixels in the unit of the modality (Hounsfield for CT), several frames as a volume.

    A waveform is read as a signal, its channels in mV where the file gives volts.

    Rescale slope and intercept are applied, of each frame where it has its own, then the window:
    the one named, or the file's own for pictures that are no CT; MONOCHROME1 is turned so that
    dense is bright.

    Args:
        path: The file.
        window: A name of :data:`WINDOWS`, or centre and width.

    Raises:
        DataError: If it is broken, holds no pixels, or its compression has no decoder here.
    """
    with guarded(path, "DICOM file"):
        data = pydicom_or_error().dcmread(path)
        if "WaveformSequence" in data:
            return waveform(data)
        stored = _decoded(data)
        frames = int(data.get("NumberOfFrames") or 1)
        if _is_colour(data):
            return _colour(data, stored, frames)
        values = turned(data, _windowed_or_own(data, _frames.rescaled(data, stored), window))
        values = require_finite(values, "DICOM file")
        spacing = _frames.pixel_spacing(data)
        if frames > 1:
            distance = _frames.frame_distance(data)
            whole = (distance, *spacing) if distance and spacing else None
            return Volume(values[None], spacing_mm=whole)
        return Image(values[None], spacing)


def read_slice(path: Path) -> Array:
    """Rows and columns of one grey frame in the unit of the modality, for a stack.

    Windows of the file are left out, since each slice may have its own, and MONOCHROME1 as it is:
    slices that were turned about their own extremes would be no stack.

    Raises:
        DataError: As :func:`read`, or if it holds anything else.
    """
    with guarded(path, "DICOM file"):
        data = pydicom_or_error().dcmread(path)
        stored = _decoded(data)
        if stored.ndim != 2 or _is_colour(data):
            raise DataError(f"'{path.name}' is no single grey slice.", expected="one frame a file")
        return require_finite(_frames.rescaled(data, stored), "DICOM file")


def header(path: Path) -> Header:
    """Frames, rows and columns with the pixel spacing, or channels and samples of a waveform."""
    pydicom = pydicom_or_error()
    with guarded(path, "DICOM file"):
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        if "Rows" not in data:
            signal = read(path)
            assert isinstance(signal, Signal)
            return Header(signal.samples.shape)
        frames = int(data.get("NumberOfFrames") or 1)
        return Header((frames, int(data.Rows), int(data.Columns)), _frames.pixel_spacing(data))


def pydicom_or_error() -> Any:
    """The library.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError.of("pydicom", "imaging") from None
    return pydicom


def windowed(values: Array, window: str | tuple[float, float]) -> Array:
    """Values cut to a window."""
    centre, width = WINDOWS[window] if isinstance(window, str) else window
    return np.clip(values, centre - width / 2, centre + width / 2)


def turned(data: Any, values: Array) -> Array:
    """Values with dense as bright, between the same extremes."""
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        return values.max() + values.min() - values
    return values


def _decoded(data: Any) -> Array:
    rows, columns = int(data.get("Rows", 0)), int(data.get("Columns", 0))
    if not rows or "PixelData" not in data:
        raise DataError(
            "The DICOM file holds no pixels.", expected="an image or a waveform, not a report"
        )
    frames, samples = int(data.get("NumberOfFrames") or 1), int(data.get("SamplesPerPixel", 1))
    require_size((frames, rows, columns, samples), "DICOM file")
    try:
        stored: Array = data.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"No decoder for the compression {data.file_meta.TransferSyntaxUID.name}.",
            next_step='pip install "galenic[imaging]"',
        ) from error
    return stored


def _is_colour(data: Any) -> bool:
    """Whether a pixel is a colour, or the number of one in a palette."""
    return int(data.get("SamplesPerPixel", 1)) > 1 or _has_palette(data)


def _has_palette(data: Any) -> bool:
    return bool(data.get("PhotometricInterpretation") == "PALETTE COLOR")


def _windowed_or_own(data: Any, values: Array, window: str | tuple[float, float] | None) -> Array:
    from pydicom.pixels import apply_voi_lut

    if window is not None:
        return windowed(values, window)
    if data.get("Modality") not in ("CT", None) and "WindowCenter" in data:
        return np.asarray(apply_voi_lut(values, data), dtype=np.float32)
    return values


def _colour(data: Any, stored: Array, frames: int) -> Image | Volume:
    """RGB; pydicom has turned YBR into it when it decoded."""
    from pydicom.pixels import apply_color_lut

    if _has_palette(data):
        deep = int(data.RedPaletteColorLookupTableDescriptor[2]) - 8
        # Beyond three channels is transparency.
        stored = (apply_color_lut(stored, data)[..., :3] >> max(0, deep)).astype(np.uint8)
    if frames > 1:
        return Volume(np.moveaxis(stored, -1, 0).astype(np.float32))
    return Image(np.ascontiguousarray(stored.transpose(2, 0, 1)))
