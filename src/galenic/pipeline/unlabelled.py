"""Samples without labels, for training that needs none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from galenic.core.seeding import stream
from galenic.pipeline.inputs import Array, Example, Inputs

# Key of the smaller views in a batch.
LOCAL = "local"


class Unlabelled(Dataset[Example]):
    """Chosen rows, each with a number that whatever is random of it is drawn from.

    Args:
        rows: Which rows of `inputs`.
        inputs: What the network reads.
        views: Draws of each sample; with more than one, they are stacked on a first axis.
        seed: Of `draws`, which depends on it, the epoch and the row alone: not on workers, and
            a resumed training finds the same.
        captions: The words beside a row, of its number and the one drawn for it.
        local: What smaller views are drawn by, and how many; with several `views` alone.
        epochs: Told the number of every epoch.
    """

    def __init__(
        self,
        rows: Sequence[int] | Array,
        inputs: Inputs,
        views: int,
        seed: int,
        captions: Callable[[int, int], Example] | None = None,
        *,
        local: tuple[Inputs, int] | None = None,
        epochs: Callable[[int], None] | None = None,
    ) -> None:
        self.rows = np.asarray(rows)
        self.inputs = inputs
        self.views = views
        self.seed = seed
        self.captions = captions
        self.local = local
        self.epochs = epochs

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Example:
        row = int(self.rows[place])
        inputs = self.inputs
        example = inputs[row] if self.views == 1 else self._views(row)
        drawn = stream(self.seed, "draws", inputs.epoch, row)
        words = {} if self.captions is None else self.captions(row, drawn)
        return {**example, **words, "draws": np.asarray(drawn, dtype=np.int64)}

    def _views(self, row: int) -> Example:
        """Views of a sample that is decoded once."""
        value = self.inputs.cohort.read(row)[self.inputs.column]
        example = {self.inputs.spec.key: self.inputs.views(row, self.views, value)}
        if self.local is not None:
            small, count = self.local
            example[LOCAL] = small.views(row, count, value)
        return example

    @property
    def lengths(self) -> Array | None:
        """Size of each sample, where sizes differ."""
        lengths = self.inputs.lengths
        return None if lengths is None else lengths[self.rows]

    def set_epoch(self, epoch: int) -> None:
        """Draw afresh from now on."""
        self.inputs.set_epoch(epoch)
        if self.local is not None:
            self.local[0].set_epoch(epoch)
        if self.epochs is not None:
            self.epochs(epoch)
