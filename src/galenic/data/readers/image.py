"""PNG, JPEG, TIFF and BMP pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.values import Header, Image

MODALITY = "image"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DEEP = {"I;16", "I;16B", "I;16L", "I", "F"}


def read(path: Path) -> Image:
    """Pixels [1 or 3, H, W]: uint8, uint16 or float32; transparency is dropped.

    Raises:
        DataError: If the file is no whole picture.
    """
    with guarded(path, "image"), Pillow.open(path) as opened:
        require_size((opened.height, opened.width), "image")
        picture = ImageOps.exif_transpose(opened)
        if picture.mode in DEEP:
            pixels = np.asarray(picture)
            kind = np.float32 if picture.mode == "F" or pixels.max() > 65535 else np.uint16
            pixels = pixels.astype(kind)
        elif picture.mode in ("L", "1", "LA"):
            pixels = np.asarray(picture.convert("L"))
        else:
            pixels = np.asarray(picture.convert("RGB"))
        layers = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return Image(require_finite(np.ascontiguousarray(layers), "image"))


def header(path: Path) -> Header:
    """Rows and columns, without decoding the pixels."""
    with guarded(path, "image"), Pillow.open(path) as opened:
        return Header((opened.height, opened.width))
