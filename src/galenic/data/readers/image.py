"""PNG, JPEG, TIFF and BMP pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, ImageOps
from PIL import Image as Pillow

from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.values import Header, Image

MODALITY = "image"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Orientations of EXIF in which rows are columns.
SIDEWAYS = (5, 6, 7, 8)
DEEP = {"I;16", "I;16B", "I;16L", "I", "F"}


def read(path: Path) -> Image:
    """Pixels [1 or 3, H, W]: uint8, uint16 or float32; transparency is dropped.

    Raises:
        DataError: If the file is no whole picture.
    """
    with guarded(path, "image"), Pillow.open(path) as opened:
        require_size((opened.height, opened.width), "image")
        ImageOps.exif_transpose(opened, in_place=True)
        if opened.mode in DEEP:
            pixels = np.asarray(opened)
            kind = np.float32 if opened.mode == "F" or pixels.max() > 65535 else np.uint16
            pixels = pixels.astype(kind)
        elif opened.mode in ("L", "1", "LA"):
            pixels = np.asarray(_in("L", opened))
        else:
            pixels = np.asarray(_in("RGB", opened))
        # A view: to move the channels in memory costs as much as to decode.
        layers = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return Image(require_finite(layers, "image"))


def _in(mode: str, picture: Pillow.Image) -> Pillow.Image:
    """The picture in a mode; Pillow would copy one that has it."""
    return picture if picture.mode == mode else picture.convert(mode)


def header(path: Path) -> Header:
    """Rows and columns, without decoding the pixels."""
    with guarded(path, "image"), Pillow.open(path) as opened:
        # As `read` turns it.
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
        size = opened.height, opened.width
        return Header(size[::-1] if turned else size)
