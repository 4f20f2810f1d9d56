"""The array bank: round trips, kills, several writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galenic.core.arraybank import ArrayBank


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=3), min_size=1, max_size=6))
def test_arrays_come_back_from_disk(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("bank")
    rng = np.random.default_rng(0)
    arrays = {str(i): rng.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}
    ArrayBank(folder).add(arrays)
    opened = ArrayBank(folder)
    for key, array in arrays.items():
        np.testing.assert_array_equal(opened[key], array)
        assert opened[key].shape == array.shape


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    first, second = ArrayBank(tmp_path), ArrayBank(tmp_path)
    first.add({"a": np.ones(3)})
    second.add({"b": np.zeros((2, 2))})
    assert "b" not in first
    first.refresh()
    np.testing.assert_array_equal(first["b"], np.zeros((2, 2)))
    assert first["b"].dtype == np.float32


def test_a_half_written_segment_is_not_seen(tmp_path: Path) -> None:
    bank = ArrayBank(tmp_path)
    bank.add({"a": np.ones(2)})
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "values.npy").write_bytes(b"half")
    again = ArrayBank(tmp_path)
    assert "a" in again


def test_stored_arrays_cannot_be_changed(tmp_path: Path) -> None:
    bank = ArrayBank(tmp_path)
    bank.add({"a": np.ones(2)})
    with pytest.raises(ValueError, match="read-only"):
        bank["a"][0] = 5
