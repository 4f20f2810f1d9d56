"""PNG, JPEG, TIFF and BMP pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, ImageOps, TiffImagePlugin
from PIL import Image as Pillow

from galenic.core.errors import DataError
from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.values import Header, Image

MODALITY = "image"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Orientations of EXIF in which rows are columns.
SIDEWAYS = (5, 6, 7, 8)
DEEP = {"I;16", "I;16B", "I;16L", "I", "F"}
# TIFF's tag NewSubfileType, and its bit that says: a smaller version of another page.
SUBFILE_TYPE, SMALLER = 254, 1


def read(path: Path) -> Image:
    """Pixels [1 or 3, H, W]: uint8, uint16 or float32; transparency is dropped.

    Raises:
        DataError: If the file is no whole picture, or several.
    """
    with guarded(path, "image"), Pillow.open(path) as opened:
        _require_one(opened)
        require_size((opened.height, opened.width), "image")
        ImageOps.exif_transpose(opened, in_place=True)
        if opened.mode in DEEP:
            pixels = np.asarray(opened)
            short = opened.mode != "F" and pixels.min() >= 0 and pixels.max() <= 65535
            pixels = pixels.astype(np.uint16 if short else np.float32)
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
        _require_one(opened)
        # As `read` turns it.
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
        size = opened.height, opened.width
        return Header(size[::-1] if turned else size)


def _require_one(opened: Pillow.Image) -> None:
    """Check that a file holds one picture: of a TIFF, one page besides smaller versions of it.

    Raises:
        DataError: If it holds several.
    """
    if not isinstance(opened, TiffImagePlugin.TiffImageFile) or opened.n_frames == 1:
        return
    pages = 0
    for place in range(opened.n_frames):
        opened.seek(place)
        pages += not opened.tag_v2.get(SUBFILE_TYPE, 0) & SMALLER
    opened.seek(0)
    if pages > 1:
        raise DataError(
            f"The TIFF has {pages} pages.",
            expected="one picture a file",
            next_step="Save each page as a file of its own, or slices of a volume as NIfTI.",
        )
