"""Stays with irregular series and notes: samples, batches, and the encoder that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from galenic.data.cohort import Cohort
from galenic.data.events.grid import carried_forward
from galenic.data.events.series import Notes, Series
from galenic.models.backbone import Backbone
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.inputs import Array, Collate, Example, Inputs

TOKENS = "notes.tokens"
# What has one entry a measurement or note; the rest has one size.
RAGGED = ("values", "mask", "times", "features")


class Stays(Dataset[Example]):
    """One example a stay: its series, their grids, and its notes.

    Args:
        series: By name of the modality, all of the same stays.
        hours: Length of the window; times are given as shares of it.
        steps: Of the grids.
        notes: The notes, or None.
        read: The notes' tokens, as inputs of a text network, or their features [N, W].
    """

    modality = "events"

    def __init__(
        self,
        series: Mapping[str, Series],
        hours: float,
        steps: int,
        notes: Notes | None = None,
        read: Inputs | Array | None = None,
    ) -> None:
        self.series, self.hours, self.notes, self.read = dict(series), hours, notes, read
        self.grids = {name: carried_forward(s, hours, steps) for name, s in series.items()}
        self._starts = [one.starts for one in self.series.values()]
        if notes is not None:
            self._starts.append(notes.starts)
        self.epochs: Callable[[int], None] | None = None

    def __len__(self) -> int:
        return len(self._starts[0]) - 1

    def __getitem__(self, stay: int) -> Example:
        """Arrays of one stay; what it lacks has length 0."""
        example: Example = {}
        for name, series in self.series.items():
            rows = series.rows(stay)
            grid, observed = self.grids[name]
            example |= {
                f"{name}.values": series.values[rows],
                f"{name}.mask": series.mask[rows],
                f"{name}.times": series.hours[rows] / np.float32(self.hours),
                f"{name}.grid": grid[stay],
                f"{name}.observed": observed[stay],
            }
        if self.notes is not None:
            rows = self.notes.rows(stay)
            times = self.notes.hours[rows] / np.float32(self.hours)
            example |= {"notes.times": times, "notes.mask": np.ones(len(times), bool)}
            if isinstance(self.read, Inputs):
                found = [self.read[at] for at in range(rows.start, rows.stop)]
                example[TOKENS] = found  # type: ignore[assignment]
            elif self.read is not None:
                example["notes.features"] = self.read[rows]
        return example

    @property
    def lengths(self) -> Array:
        """Measurements and notes of each stay: those alike share a batch."""
        found: Array = np.sum([np.diff(starts) for starts in self._starts], axis=0)
        return found

    def set_epoch(self, epoch: int) -> None:
        """Tell whoever listens in `epochs`."""
        if self.epochs is not None:
            self.epochs(epoch)


class StayCollate:
    """Stays to one batch, padded; the notes of all stays are one list of tokens.

    Args:
        text: What reads the notes, or None.
    """

    def __init__(self, text: Backbone | None = None) -> None:
        self.tokens = None if text is None else Collate.of(text)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Tensors by key, as :class:`StayEncoder` takes them."""
        batch: dict[str, Tensor] = {}
        for key in examples[0]:
            found = [example[key] for example in examples]
            if key == TOKENS:
                if every := [note for notes in found for note in notes]:
                    assert self.tokens is not None
                    tokens = self.tokens(every)
                    batch |= {f"{TOKENS}.{name}": value for name, value in tokens.items()}
            elif key.rpartition(".")[2] in RAGGED and "." in key:
                batch[key] = _padded(found)
            else:
                batch[key] = torch.from_numpy(np.stack(found))
        return batch


def _padded(arrays: Sequence[Array]) -> Tensor:
    """[B, L, ...] with zeros behind; L is at least 1."""
    padded = pad_sequence([torch.from_numpy(array) for array in arrays], batch_first=True)
    if padded.shape[1]:
        return padded
    return padded.new_zeros(len(arrays), 1, *padded.shape[2:])


class StayEncoder(nn.Module):
    """Features of stays [B, width]; a text network in front of the notes.

    Args:
        network: Takes batches of :class:`StayCollate`, notes as features.
        text: Reads notes that come as tokens.
    """

    def __init__(self, network: nn.Module, text: PooledEncoder | None = None) -> None:
        super().__init__()
        self.network, self.text = network, text
        self.text_learns = True

    def set_epoch(self, epoch: int) -> None:
        """The text network learns in epochs 0, 2, 4, ... (section 4.1), and not in between."""
        self.text_learns = epoch % 2 == 0

    def forward(self, **batch: Tensor) -> Tensor:
        """[B, width]."""
        if self.text is not None and "notes.features" not in batch:
            batch["notes.features"] = self._read(batch)
        found: Tensor = self.network(**batch)
        return found

    def _read(self, batch: dict[str, Tensor]) -> Tensor:
        """Features [B, K, W] of notes; zeros where there is none."""
        assert self.text is not None
        mask = batch["notes.mask"]
        features = torch.zeros(*mask.shape, self.text.backbone.width, device=mask.device)
        names = [key for key in batch if key.startswith(f"{TOKENS}.")]
        tokens = {key.removeprefix(f"{TOKENS}."): batch.pop(key) for key in names}
        if tokens:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.text_learns):
                features[mask] = self.text(**tokens).to(features.dtype)
        return features


def note_inputs(notes: Notes, text: Backbone) -> Inputs:
    """The notes, one a row, as inputs of a text network.

    Raises:
        DataError: If the network has no tokenizer.
    """
    table = pd.DataFrame({"note": notes.texts})
    cohort = Cohort(
        table=table,
        root=Path(),
        inputs={"note": "text"},
        label=None,
        patient_ids=np.arange(len(table)),
        name="notes",
    )
    return Inputs(cohort, text)
