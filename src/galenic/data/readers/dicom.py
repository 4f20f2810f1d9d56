"""DICOM pictures, multi-frame stacks and waveforms. Nothing that identifies a patient leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.errors import DataError, MissingExtraError
from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.readers._waveform import waveform
from galenic.data.values import Header, Image, Signal, Volume

MODALITY = "image"
SUFFIXES = (".dcm", ".dicom")
# Centre and width in Hounsfield units.
WINDOWS = {
    "lung": (-600.0, 1500.0),
    "soft": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
}
HEADER_TAGS = ["Rows", "Columns", "NumberOfFrames", "PixelSpacing", "ImagerPixelSpacing"]


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

    Rescale slope and intercept are applied, then the window: the one named, or the file's own
    for pictures that are no CT; MONOCHROME1 is turned so that dense is bright.

    Args:
        path: The file.
        window: A name of :data:`WINDOWS`, or centre and width.

    Raises:
        DataError: If it is broken, holds no pixels, or its compression has no decoder here.
    """
    pydicom = pydicom_or_error()
    with guarded(path, "DICOM file"):
        data = pydicom.dcmread(path)
        if "WaveformSequence" in data:
            return waveform(data)
        rows, columns = int(data.get("Rows", 0)), int(data.get("Columns", 0))
        if not rows or "PixelData" not in data:
            raise DataError(
                "The DICOM file holds no pixels.", expected="an image or a waveform, not a report"
            )
        frames, samples = int(data.get("NumberOfFrames") or 1), int(data.get("SamplesPerPixel", 1))
        require_size((frames, rows, columns, samples), "DICOM file")
        try:
            stored = data.pixel_array
        except (RuntimeError, NotImplementedError) as error:
            raise DataError(
                f"No decoder for the compression {data.file_meta.TransferSyntaxUID.name}.",
                next_step='pip install "galenic[imaging]"',
            ) from error
        if samples > 1:
            return _colour(data, stored, frames)
        values = _grey(data, stored, window)
        values = require_finite(values, "DICOM file")
        spacing = _spacing(data)
        if frames > 1:
            thickness = data.get("SpacingBetweenSlices") or data.get("SliceThickness")
            whole = (float(thickness), *spacing) if thickness and spacing else None
            return Volume(values[None], spacing_mm=whole)
        return Image(values[None], spacing)


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
        return Header((frames, int(data.Rows), int(data.Columns)), _spacing(data))


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


def _grey(data: Any, stored: Any, window: str | tuple[float, float] | None) -> Any:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(stored, data)
    if window is not None:
        centre, width = WINDOWS[window] if isinstance(window, str) else window
        values = np.clip(values, centre - width / 2, centre + width / 2)
    elif data.get("Modality") not in ("CT", None) and "WindowCenter" in data:
        values = apply_voi_lut(values, data)
    values = np.asarray(values, dtype=np.float32)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values
    return values


def _colour(data: Any, stored: Any, frames: int) -> Image | Volume:
    from pydicom.pixels import convert_color_space

    space = str(data.PhotometricInterpretation)
    # pydicom converts what it decompresses; only what was stored plain is still in YBR.
    if space.startswith("YBR") and not data.file_meta.TransferSyntaxUID.is_compressed:
        stored = convert_color_space(stored, space, "RGB", per_frame=True)
    if frames > 1:
        return Volume(np.moveaxis(stored, -1, 0).astype(np.float32))
    return Image(np.ascontiguousarray(stored.transpose(2, 0, 1)))


def _spacing(data: Any) -> tuple[float, float] | None:
    values = data.get("PixelSpacing") or data.get("ImagerPixelSpacing")
    return (float(values[0]), float(values[1])) if values else None
