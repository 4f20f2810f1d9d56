"""Pictures of a detector's work: true boxes and its own on the images they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from galenic.core.run import Run
from galenic.data.boxes import Found, Truth
from galenic.data.cohort import Cohort
from galenic.pipeline.pictures import SAID, TRUE, enlarged, write_overlay

Array = np.ndarray[Any, np.dtype[Any]]


def draw(
    run: Run,
    cohort: Cohort,
    rows: Array,
    chosen: list[tuple[int, str]],
    truth: Truth,
    found: Found,
    threshold: float,
) -> list[dict[str, Any]]:
    """Write a picture of each chosen image: true boxes green, those it was sure of orange.

    Args:
        run: Where to write.
        cohort: The images.
        rows: Row of each image.
        chosen: Images, and why they are shown.
        truth: All true boxes.
        found: All detections.
        threshold: Score from which a detection is drawn.

    Returns:
        Row, reason and file of each picture.
    """
    column, shown = next(iter(cohort.inputs)), []
    for image, reason in chosen:
        row = int(rows[image])
        large, factor = enlarged(cohort.read(row)[column])
        theirs, own = truth.image == image, (found.image == image) & (found.score >= threshold)
        _rectangles(large, truth.corners[theirs] * factor, TRUE)
        _rectangles(large, found.corners[own] * factor, SAID, found.score[own])
        shown.append(write_overlay(run, row, large, reason))
    return shown


def _rectangles(
    picture: Pillow.Image, corners: Array, colour: str, scores: Array | None = None
) -> None:
    pen = ImageDraw.Draw(picture)
    for place, box in enumerate(corners):
        low, high = np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])
        pen.rectangle([*low.tolist(), *high.tolist()], outline=colour, width=2)
        if scores is not None:
            pen.text((float(low[0]) + 3, float(low[1]) + 2), f"{scores[place]:.2f}", fill=colour)
