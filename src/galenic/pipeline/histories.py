"""Token histories as batches: for the next token, and for the answers to tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from galenic.data.events.tokens import INPUTS, History, prompted, truncate

Array = np.ndarray[Any, np.dtype[Any]]
Sample = dict[str, Any]


class HistoryRows(Dataset[Sample]):
    """Histories to go on with.

    Args:
        histories: Of any length.
        length: Most tokens of a sample; the most recent ones stay.
    """

    def __init__(self, histories: Sequence[History], length: int) -> None:
        self.histories, self.length = histories, length
        self.lengths = np.minimum([len(history["types"]) for history in histories], length)

    def __len__(self) -> int:
        return len(self.histories)

    def __getitem__(self, index: int) -> Sample:
        return truncate(self.histories[index], self.length)


class TaskRows(HistoryRows):
    """Histories up to the cutoff of a task, each asked that task.

    Args:
        histories: Of any length.
        length: As for :class:`HistoryRows`; the token of the task stays.
        tokens: Of the task of each history [n].
        labels: 0 or 1 [n]; None where the answers are not looked at.
    """

    def __init__(
        self, histories: Sequence[History], length: int, tokens: Array, labels: Array | None = None
    ) -> None:
        super().__init__(histories, length)
        self.tokens, self.labels = tokens, labels

    def __getitem__(self, index: int) -> Sample:
        history = prompted(super().__getitem__(index), int(self.tokens[index]))
        return history if self.labels is None else {**history, "labels": int(self.labels[index])}


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Histories as a batch, padded on the right with zeros.

    Returns:
        What a network reads, `attention_mask`, both [B, L], and `labels` [B] where there are some.
    """
    lengths = torch.tensor([len(sample["types"]) for sample in samples])
    batch = {
        name: torch.zeros(len(samples), int(lengths.max()), dtype=torch.long) for name in INPUTS
    }
    for row, sample in enumerate(samples):
        for name, values in batch.items():
            values[row, : lengths[row]] = torch.from_numpy(sample[name].astype(np.int64))
    places = torch.arange(int(lengths.max()))
    batch["attention_mask"] = (places < lengths[:, None]).long()
    if "labels" in samples[0]:
        batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
    return batch


def down_sampled(labels: Array, tasks: Array, rate: float, draws: np.random.Generator) -> Array:
    """Rows to train on: of each task all positives, and as many negatives as give the rate.

    A task with more positives than that keeps all its rows.

    Args:
        labels: 0 or 1 [n].
        tasks: [n].
        rate: Wished share of positives, in (0, 1).
        draws: Which negatives stay.

    Returns:
        Row numbers, ascending.
    """
    kept = []
    for task in np.unique(tasks):
        rows = np.flatnonzero(tasks == task)
        positive, negative = rows[labels[rows] == 1], rows[labels[rows] == 0]
        wanted = round(len(positive) * (1 - rate) / rate)
        if len(positive) and wanted < len(negative):
            negative = draws.choice(negative, wanted, replace=False)
        kept += [positive, negative]
    return np.sort(np.concatenate(kept))
