"""Images with their boxes, as a detector is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from galenic.core.inputs import InputSpec
from galenic.data.augment import AugmentConfig
from galenic.data.boxes import IN_SIGHT, Boxes, Found, Truth, clipped, drawn_along
from galenic.data.cohort import Cohort
from galenic.data.crop import window
from galenic.data.transforms import build

Array = np.ndarray[Any, np.dtype[Any]]
Example = dict[str, Array]


class BoxRows(Dataset[Example]):
    """One image a row, resized to what the network takes, and its boxes along with it.

    Args:
        cohort: The images.
        rows: Rows of the cohort [n].
        boxes: Of every row of the cohort, in its own pixels.
        sizes: Width and height of every image of the cohort.
        spec: What the network wants.
        augment: What may be varied; None for nothing.
        seed: Of the augmentation, which depends on seed, epoch and row alone.
    """

    def __init__(
        self,
        cohort: Cohort,
        rows: Array,
        boxes: Sequence[Boxes],
        sizes: Array,
        spec: InputSpec,
        *,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.cohort, self.rows, self.boxes, self.sizes = cohort, rows, boxes, sizes
        self.column = next(iter(cohort.inputs))
        self.transform = build(spec, "image", augment=augment)
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Example:
        """`pixel_values` [C, H, W], `boxes` [M, 4] in its pixels, and their `classes` [M]."""
        row = int(self.rows[place])
        value = self.cohort.read(row)[self.column]
        draw = self.transform.draw(np.random.default_rng([self.seed, self.epoch, row]), value)
        pixels = self.transform.apply(value, draw)
        size = pixels.shape[-1], pixels.shape[-2]
        boxes, (width, height) = self.boxes[row], self.sizes[row].tolist()
        if draw is not None and draw["crop"] is not None:
            top, left, height, width = window(height, width, draw["crop"])
            boxes = clipped(boxes.moved(-left, -top), (width, height), IN_SIGHT)
        boxes = boxes.scaled((width, height), size)
        if draw is not None:
            boxes = drawn_along(boxes, size, draw)
        return {
            "pixel_values": pixels,
            "boxes": boxes.corners.astype(np.float32),
            "classes": boxes.classes,
        }

    def set_epoch(self, epoch: int) -> None:
        """Draw afresh from now on."""
        self.epoch = epoch


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """One batch; where an image has fewer boxes than another, class -1 fills up."""
    most = max(len(example["classes"]) for example in examples)
    boxes = np.zeros((len(examples), most, 4), np.float32)
    classes = np.full((len(examples), most), -1, np.int64)
    for place, example in enumerate(examples):
        count = len(example["classes"])
        boxes[place, :count], classes[place, :count] = example["boxes"], example["classes"]
    pixels = np.stack([example["pixel_values"] for example in examples])
    return {
        "pixel_values": torch.from_numpy(pixels),
        "boxes": torch.from_numpy(boxes),
        "classes": torch.from_numpy(classes),
    }


def truth_of(boxes: Sequence[Boxes], rows: Array) -> Truth:
    """The boxes of some rows; image i is the i-th of them."""
    some = [boxes[row] for row in rows]
    return Truth(
        np.repeat(np.arange(len(some)), [len(part) for part in some]),
        np.concatenate([part.corners for part in some]),
        np.concatenate([part.classes for part in some]),
    )


def found_of(detections: Array, sizes: Array, size: tuple[int, int], least: float) -> Found:
    """Detections in the pixels of the images themselves.

    Args:
        detections: x1, y1, x2, y2, score, class [n, D, 6] in pixels of the network's input.
        sizes: Width and height of each image [n, 2].
        size: Width and height of the network's input.
        least: Score below which a detection is left out.
    """
    image, place = np.nonzero((detections[..., 5] >= 0) & (detections[..., 4] >= least))
    chosen = detections[image, place].astype(float)
    factor = np.tile(sizes / np.array(size, float), 2)[image]
    return Found(image, chosen[:, :4] * factor, chosen[:, 5].astype(np.int64), chosen[:, 4])
