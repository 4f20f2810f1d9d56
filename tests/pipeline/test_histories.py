"""Histories as batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galenic.data.events.tokens import STREAMS, History
from galenic.pipeline.histories import HistoryRows, TaskRows, collate, down_sampled


def history(length: int) -> History:
    """[CLS] [VS] e ... [REG], each stream counting from its own start."""
    types = np.array([1, 2, *[7] * (length - 3), 8])
    found = {name: np.arange(length) + place for place, name in enumerate(STREAMS)}
    return {**found, "types": types, "segments": np.minimum(np.arange(length), 1),
            "positions": np.minimum(np.arange(length), 1)}  # fmt: skip


def test_a_batch_is_padded_on_the_right() -> None:
    rows = HistoryRows([history(5), history(9)], length=64)
    batch = collate([rows[0], rows[1]])
    assert batch["attention_mask"].sum(1).tolist() == [5, 9]
    assert set(batch) == {*STREAMS, "attention_mask"} - {"elapsed"}
    for name, values in batch.items():
        assert values.shape == (2, 9) and not values[0, 5:].any(), name
    assert batch["input_ids"][1].tolist() == list(range(9))


@pytest.mark.parametrize("length", [16, 64])
def test_the_token_of_the_task_survives_what_is_cut(length: int) -> None:
    rows = TaskRows([history(5), history(40)], length, np.array([77, 78]), np.array([1, 0]))
    assert rows.lengths.tolist() == [5, min(length, 40)]
    batch = collate([rows[0], rows[1]])
    assert batch["labels"].tolist() == [1, 0]
    for row, token in enumerate((77, 78)):
        inside = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert (inside[0], inside[-1]) == (token, token)
        assert token not in inside[1:-1]
    assert rows.histories[1]["input_ids"][0] == 0, "the caller's history stays as it was"


def test_negatives_are_left_out_down_to_the_rate() -> None:
    tasks = np.repeat([0, 1, 2], 100)
    labels = np.concatenate([np.arange(100) < 10, np.arange(100) < 60, np.zeros(100)]).astype(int)
    kept = down_sampled(labels, tasks, 0.25, np.random.default_rng(0))
    assert (np.diff(kept) > 0).all()
    counts = [
        (int(labels[kept][tasks[kept] == t].sum()), int((tasks[kept] == t).sum())) for t in range(3)
    ]
    # A quarter of the first; the second has more positives already; the third has none.
    assert counts == [(10, 40), (60, 100), (0, 100)]
    again = down_sampled(labels, tasks, 0.25, np.random.default_rng(1))
    assert not np.array_equal(kept, again) and labels[again].sum() == labels.sum()


def test_batches_are_long_integers() -> None:
    batch = collate([history(4)])
    assert {values.dtype for values in batch.values()} == {torch.int64}
