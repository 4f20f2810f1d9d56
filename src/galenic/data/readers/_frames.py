"""What a DICOM file says of its frames: at its top, or in the functional groups of enhanced kinds.

Source: DICOM PS3.3, C.7.6.16 (multi-frame functional groups).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
# All that is needed here, for a reading of headers alone.
TAGS = [
    "NumberOfFrames", "PixelSpacing", "ImagerPixelSpacing", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


def rescaled(data: Any, stored: Array) -> Array:
    """Stored values in the unit of the modality, float32."""
    from pydicom.pixels import apply_modality_lut

    steps = _items(data, "PixelValueTransformationSequence")
    if not steps or "RescaleSlope" in data or "ModalityLUTSequence" in data:
        return np.asarray(apply_modality_lut(stored, data), dtype=np.float32)
    frames = stored.reshape(-1, *stored.shape[-2:])
    found = np.empty(frames.shape, np.float32)
    for place, (frame, step) in enumerate(zip(frames, steps, strict=True)):
        found[place] = apply_modality_lut(frame, step)
    return found.reshape(stored.shape)


def pixel_spacing(data: Any) -> tuple[float, float] | None:
    """Distances of rows and of columns in mm, where known."""
    values = _measure(data, "PixelSpacing", "ImagerPixelSpacing")
    return (float(values[0]), float(values[1])) if values else None


def frame_distance(data: Any) -> float | None:
    """Distance of neighbouring frames in mm, by their positions or as written, where known."""
    positions = _values(data, "PlanePositionSequence", "ImagePositionPatient")
    directions = _values(data, "PlaneOrientationSequence", "ImageOrientationPatient")
    if len(positions) > 1 and directions:
        cosines = np.array(directions[0], dtype=float)
        places = np.array(positions, dtype=float) @ np.cross(cosines[:3], cosines[3:])
        usual = float(np.median(np.abs(np.diff(places))))
        if usual > 0:
            return usual
    written = _measure(data, "SpacingBetweenSlices", "SliceThickness")
    return float(written) if written else None


def _measure(data: Any, *tags: str) -> Any:
    """The first of some measures that the file gives."""
    holders = [data, *_items(data, "PixelMeasuresSequence")[:1]]
    found = (holder.get(tag) for holder in holders for tag in tags)
    return next((value for value in found if value), None)


def _values(data: Any, group: str, tag: str) -> list[Any]:
    """What each frame has under a tag of a functional group; [] where some frame has nothing."""
    found = [item.get(tag) for item in _items(data, group)]
    return found if all(found) else []


def _items(data: Any, group: str) -> list[Any]:
    """A functional group of each frame, its own or that of all; [] where some frame has none."""
    shared: Any = next(iter(data.get("SharedFunctionalGroupsSequence") or ()), {})
    count = int(data.get("NumberOfFrames") or 1)
    frames = data.get("PerFrameFunctionalGroupsSequence") or [{}] * count
    found: list[Any] = [frame.get(group) or shared.get(group) for frame in frames]
    return [sequence[0] for sequence in found] if all(found) else []
