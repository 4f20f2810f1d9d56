"""The boxes of a cohort, held against the sizes of its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from galenic.core.errors import DataError
from galenic.data.boxes import Boxes, areas, clipped, read_boxes
from galenic.data.cohort import Cohort
from galenic.data.labels import require_kind

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class BoxFaults:
    """Rows with boxes that cannot be as they are; what is left of each is used.

    Attributes:
        flat: With boxes that have no area.
        outside: With boxes that reach beyond the image.
        lost: How many boxes are left out: flat ones, and those wholly outside.
    """

    flat: Array
    outside: Array
    lost: int


def sizes_of(cohort: Cohort) -> Array:
    """Width and height of every image, from the headers [n, 2].

    Raises:
        DataError: If the cohort's input is no image, or a file is missing or broken.
    """
    column, modality = next(iter(cohort.inputs.items()))
    if modality != "image":
        raise DataError(
            f"Boxes are found in images; column '{column}' is {modality}.", where=cohort.name
        )
    found = []
    for row in range(len(cohort)):
        header = cohort.header(row)[column]
        shape = cohort.read(row)[column].pixels.shape if header is None else header.shape
        found.append((shape[-1], shape[-2]))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def boxes_of(cohort: Cohort, sizes: Array) -> tuple[list[Boxes], BoxFaults]:
    """Boxes of every image, cut to it, and what was wrong with them.

    Args:
        cohort: Its label holds boxes.
        sizes: Width and height of every image [n, 2].

    Raises:
        DataError: If the label holds no boxes.
    """
    label = require_kind(cohort.label, "boxes", cohort.table, cohort.name)
    raw = read_boxes(cohort.table, label.columns, label.classes)
    kept = [clipped(boxes, _pair(size)) for boxes, size in zip(raw, sizes, strict=True)]
    flat = [row for row, boxes in enumerate(raw) if (areas(boxes.corners) <= 0).any()]
    outside = [row for row, boxes in enumerate(raw) if _beyond(boxes, sizes[row])]
    lost = sum(map(len, raw)) - sum(map(len, kept))
    return kept, BoxFaults(np.array(flat, int), np.array(outside, int), lost)


def _beyond(boxes: Boxes, size: Array) -> bool:
    # Annotators count the last pixel as 'width' or as 'width - 1': half a pixel is no fault.
    edge = np.tile(size, 2) + 0.5
    return bool(((boxes.corners < -0.5) | (boxes.corners > edge)).any())


def _pair(size: Array) -> tuple[int, int]:
    return int(size[0]), int(size[1])
