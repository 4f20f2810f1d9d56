"""Prediction: all outputs, in order, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from galenic.core.errors import DataError
from galenic.core.prediction import predict


class Lines:
    """Samples of many sizes, as texts are."""

    def __init__(self, n: int) -> None:
        self.lengths = np.random.default_rng(0).integers(1, 9, n)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return np.full(self.lengths[row], row)


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)
        self.frozen = nn.Dropout(0.9).eval()
        self.widths: list[int] = []

    def forward(self, rows: Tensor, size: Tensor) -> dict[str, Any]:
        self.widths.append(rows.shape[1])
        value = self.frozen(self.drop(rows[:, 0].float()))
        return {
            "loss": value.mean(), "row": value, "half": value.bfloat16(),
            "size": size, "note": "text", "scalar": value.sum(),
        }  # fmt: skip


def collate(samples: list[np.ndarray]) -> dict[str, Tensor]:
    rows = nn.utils.rnn.pad_sequence([torch.tensor(s) for s in samples], batch_first=True)
    return {"rows": rows, "size": torch.tensor([len(s) for s in samples])}


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("workers", [0, 1])
def test_outputs_come_in_the_order_of_the_samples(batch_size: int, workers: int) -> None:
    data = Lines(11)
    found = predict(Reads(), data, collate=collate, batch_size=batch_size, workers=workers)  # type: ignore[arg-type]
    assert set(found) == {"row", "half", "size"}
    assert found["row"].tolist() == list(range(11))
    assert found["half"].dtype == np.float32
    assert found["size"].dtype == np.int64 and found["size"].tolist() == data.lengths.tolist()


def test_random_state_and_modes_are_left_alone() -> None:
    reads = Reads()
    modes = [part.training for part in reads.modules()]
    assert len(set(modes)) == 2
    before = torch.random.get_rng_state()
    predict(reads, Lines(5), collate=collate)  # type: ignore[arg-type]
    assert torch.equal(before, torch.random.get_rng_state())
    assert [part.training for part in reads.modules()] == modes


def test_modes_come_back_after_an_error() -> None:
    reads = Reads()

    def breaks(samples: list[np.ndarray]) -> dict[str, Tensor]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        predict(reads, Lines(5), collate=breaks)  # type: ignore[arg-type]
    assert reads.training and not reads.frozen.training


def test_no_samples_is_an_error() -> None:
    with pytest.raises(DataError, match="no samples"):
        predict(Reads(), Lines(0), collate=collate)  # type: ignore[arg-type]
