"""Samples without labels, for training that needs none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from galenic.core.seeding import stream
from galenic.pipeline.inputs import Array, Example, Inputs


class Unlabelled(Dataset[Example]):
    """Chosen rows, each with a number that whatever is random of it is drawn from.

    Args:
        rows: Which rows of `inputs`.
        inputs: What the network reads.
        views: Draws of each sample; with more than one, they are stacked on a first axis.
        seed: Of `draws`, which depends on it, the epoch and the row alone: not on workers, and
            a resumed training finds the same.
        captions: The words beside a row, of its number and the one drawn for it.
    """

    def __init__(
        self,
        rows: Sequence[int] | Array,
        inputs: Inputs,
        views: int,
        seed: int,
        captions: Callable[[int, int], Example] | None = None,
    ) -> None:
        self.rows = np.asarray(rows)
        self.inputs = inputs
        self.views = views
        self.seed = seed
        self.captions = captions

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Example:
        row = int(self.rows[place])
        inputs = self.inputs
        example = inputs[row] if self.views == 1 else inputs.views(row, self.views)
        drawn = stream(self.seed, "draws", inputs.epoch, row)
        words = {} if self.captions is None else self.captions(row, drawn)
        return {**example, **words, "draws": np.asarray(drawn, dtype=np.int64)}

    @property
    def lengths(self) -> Array | None:
        """Size of each sample, where sizes differ."""
        lengths = self.inputs.lengths
        return None if lengths is None else lengths[self.rows]

    def set_epoch(self, epoch: int) -> None:
        """Draw afresh from now on."""
        self.inputs.set_epoch(epoch)
