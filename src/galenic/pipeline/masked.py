"""Pictures with their masks: one a row, or one a slice where a network of pictures reads volumes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from galenic.core.errors import DataError
from galenic.core.fingerprint import fingerprint_bytes
from galenic.data import transforms
from galenic.data.augment import AugmentConfig
from galenic.data.cohort import Cohort
from galenic.data.masks import Masks, moved, nearest
from galenic.data.values import Image, Volume
from galenic.models.backbone import Backbone
from galenic.models.decoders import SMOOTH
from galenic.pipeline.inputs import Example, single_input

Array = np.ndarray[Any, np.dtype[Any]]
# Decoded volumes that are kept: their slices are asked for one by one.
RECENT = 16


class Frames(Dataset[Example]):
    """What a network reads of the rows of a cohort, frame by frame.

    All slices of a volume share the volume's own intensity scale.

    Args:
        cohort: One input column of pictures or volumes.
        backbone: The network.
        shapes: Of each row's mask.
        augment: What may be varied in training; None for nothing.
    """

    lengths = None

    def __init__(
        self,
        cohort: Cohort,
        backbone: Backbone,
        shapes: Sequence[tuple[int, ...]],
        augment: AugmentConfig | None = None,
    ) -> None:
        self.cohort, self.shapes = cohort, shapes
        self.column, self.modality = single_input(cohort)
        self.key = backbone.inputs.key
        self.size = tuple(backbone.inputs.size or ())
        self.sliced = self.modality == "volume" and backbone.inputs.form == "image"
        self.transform = transforms.build(backbone.inputs, self.modality, augment=augment)
        counts = [shape[0] if self.sliced and shape else int(bool(shape)) for shape in shapes]
        self.row = np.repeat(np.arange(len(cohort)), counts)
        self.slice = np.concatenate([np.arange(count) for count in counts] or [np.arange(0)])
        self._volume = lru_cache(RECENT)(self._read)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, place: int) -> Example:
        """The undrawn input of one frame, without a batch axis."""
        return {self.key: self.transform.apply(self.value(place))}

    def value(self, place: int) -> Image | Volume:
        """The picture, the volume, or the slice of one frame."""
        row = int(self.row[place])
        return self._volume(row)[int(self.slice[place])] if self.sliced else self._read(row)[0]

    def _read(self, row: int) -> list[Image | Volume]:
        value = self.cohort.read(row)[self.column]
        found = value.pixels.shape[1:] if isinstance(value, Image) else value.voxels.shape[1:]
        if tuple(found) != tuple(self.shapes[row]):
            raise DataError(
                f"The mask is {_by(self.shapes[row])}, its picture {_by(found)}.",
                where=f"{self.cohort.name}, row {row}",
                expected="a mask of the picture's size",
                next_step="`galenic check` lists every such row.",
            )
        if not self.sliced:
            return [value]
        # Eight bits keep the scale that the whole volume has; a slice's own would undo it.
        levels = np.round(255 * transforms.scale(value.voxels)).astype(np.uint8)
        return [Image(levels[:, depth]) for depth in range(levels.shape[1])]

    def of(self, rows: Iterable[int]) -> Array:
        """Places of all frames of some rows, in their order."""
        return np.concatenate([np.flatnonzero(self.row == row) for row in rows])

    def keys(self, places: Iterable[int]) -> list[str]:
        """A content key of each frame, for the caches; no file is decoded."""
        way = self.transform.fingerprint
        content = lru_cache(None)(self.cohort.content)
        return [
            fingerprint_bytes(way, content(int(self.row[place])), str(self.slice[place]))
            for place in places
        ]


class MaskedRows(Dataset[Example]):
    """Frames of some rows, each with its mask in the size of the network's input.

    Args:
        frames: Of the whole cohort.
        masks: Of the whole cohort; None for frames alone.
        rows: Which rows.
        classes: Codes there are, background included.
        seed: Of the augmentation.
        packed: Maps of these frames that were computed ahead, instead of the frames themselves.
    """

    def __init__(
        self,
        frames: Frames,
        masks: Masks | None,
        rows: Iterable[int],
        classes: int,
        *,
        seed: int = 0,
        packed: Sequence[Array] | None = None,
    ) -> None:
        self.frames, self.masks, self.classes, self.seed = frames, masks, classes, seed
        self.places, self.packed, self.epoch = frames.of(rows), packed, 0

    def __len__(self) -> int:
        return len(self.places)

    def set_epoch(self, epoch: int) -> None:
        """Draw afresh from now on."""
        self.epoch = epoch

    def __getitem__(self, number: int) -> Example:
        """What the encoder takes, and `labels`: codes in the size of the input."""
        place, transform = int(self.places[number]), self.frames.transform
        draw = None
        if self.packed is not None:
            example = {"packed": np.array(self.packed[number])}
        else:
            value = self.frames.value(place)
            draw = transform.draw(np.random.default_rng([self.seed, self.epoch, place]), value)
            example = {self.frames.key: transform.apply(value, draw)}
        if self.masks is not None:
            crop = None if draw is None else draw["crop"]
            codes = nearest(self._codes(place), self.frames.size, crop)
            example["labels"] = codes if draw is None else moved(codes, draw, self.classes)
        return example

    def _codes(self, place: int) -> Array:
        assert self.masks is not None
        row, depth = int(self.frames.row[place]), int(self.frames.slice[place])
        codes = self.masks.codes(row)
        if not self.frames.sliced:
            return codes
        # A mask of another volume (the control) is as deep as that one is.
        return codes[depth * len(codes) // self.frames.shapes[row][0]]


def whole(logits: Array, shape: tuple[int, ...]) -> Array:
    """Codes in the shape of a case, from the logits [frames, K, ...] of its frames."""
    frame = shape[-(logits.ndim - 2) :]
    wide = functional.interpolate(
        torch.from_numpy(logits), frame, mode=SMOOTH[len(frame)], align_corners=False
    )
    return wide.argmax(dim=1).numpy().reshape(shape)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
