"""Pictures for people: from pixels of any kind to a PNG in a run folder."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image as Pillow

from galenic.core.run import Run
from galenic.data.values import Image, Volume

# Longer side of a picture that something is drawn on.
SIDE = 320
TRUE, SAID = "#2ca02c", "#ff7f0e"


def picture_of(value: Image | Volume) -> Pillow.Image:
    """An 8-bit picture, its intensities between the 0.5 and 99.5 percentiles; a middle slice."""
    if isinstance(value, Volume):
        picture = value.voxels[0, value.voxels.shape[1] // 2]
    else:
        picture = value.pixels.transpose(1, 2, 0) if len(value.pixels) == 3 else value.pixels[0]
    low, high = np.percentile(picture, [0.5, 99.5])
    scaled = np.clip((picture - low) / max(high - low, 1e-6), 0, 1) * 255
    return Pillow.fromarray(scaled.astype(np.uint8))


def enlarged(value: Image | Volume) -> tuple[Pillow.Image, float]:
    """The picture in colours, `SIDE` pixels at its longer side, and the factor to that."""
    picture = picture_of(value).convert("RGB")
    factor = SIDE / max(picture.size)
    return picture.resize([max(1, round(side * factor)) for side in picture.size]), factor


def write_overlay(run: Run, row: int, picture: Pillow.Image, reason: str) -> dict[str, Any]:
    """Write what was drawn over a sample; row, reason and file for the report."""
    name = f"overlays/{row}.png"
    run.write_bytes(name, png(picture))
    return {"row": row, "reason": reason, "png": name}


def png(picture: Pillow.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
