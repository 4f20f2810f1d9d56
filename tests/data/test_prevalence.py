"""Parts at a wished prevalence, by leaving samples out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galenic.core.errors import DataError
from galenic.data.prevalence import PrevalenceConfig, counts_of, make_prevalence_split
from galenic.data.splits import PARTS, Splits


def world(seed: int, people: int = 90) -> tuple[Splits, np.ndarray, np.ndarray]:
    """Patients of 4 to 9 slices; a third is ill, in 1 to 4 slices each."""
    draw = np.random.default_rng(seed)
    patients = np.repeat(np.arange(people), draw.integers(4, 10, people))
    positive = np.zeros(len(patients), bool)
    for person in range(0, people, 3):
        rows = np.flatnonzero(patients == person)
        positive[rows[: draw.integers(1, 5)]] = True
    part = draw.integers(0, 3, people)[patients]
    return Splits(*(np.flatnonzero(part == place) for place in range(3))), patients, positive


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.sampled_from([1.0, 2.5, 4.0]), st.sampled_from(["patient", "both"]))
def test_patients_are_whole_and_at_the_ratio(seed: int, ratio: float, unit: str) -> None:
    splits, patients, positive = world(seed)
    config = PrevalenceConfig(train=ratio, test=ratio, unit=unit)
    found = make_prevalence_split(splits, patients, positive, config, seed)
    assert found.val is splits.val
    for part in ("train", "test"):
        rows, before = getattr(found, part), getattr(splits, part)
        assert np.isin(rows, before).all() and len(np.unique(rows)) == len(rows)
        counts = counts_of(rows, patients, positive)
        assert abs(counts["patients_without"] - ratio * counts["patients_with"]) <= 0.5
        if unit == "patient":
            whole = before[np.isin(patients[before], patients[rows])]
            assert rows.tolist() == whole.tolist()
        else:
            assert abs(counts["slices_without"] - ratio * counts["slices_with"]) <= 0.5


def test_no_patient_loses_his_last_slice_with_a_finding() -> None:
    splits, patients, positive = world(3)
    config = PrevalenceConfig(train=9, unit="slice")
    found = make_prevalence_split(splits, patients, positive, config, 0)
    before, after = splits.train, found.train
    ill = np.unique(patients[before][positive[before]])
    assert np.array_equal(np.unique(patients[after][positive[after]]), ill)
    assert len(after) < len(before)


def test_the_same_seed_the_same_rows_and_another_seed_others() -> None:
    splits, patients, positive = world(1)
    config = PrevalenceConfig(train=9, val=9, test=9)
    a, b, c = (
        make_prevalence_split(splits, patients, positive, config, seed) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(getattr(a, part), getattr(b, part)) for part in PARTS)
    assert not np.array_equal(a.train, c.train)


def test_test_patients_do_not_depend_on_what_is_asked_of_training() -> None:
    splits, patients, positive = world(1)
    tests = [
        make_prevalence_split(
            splits, patients, positive, PrevalenceConfig(train=ratio, test=9), 0
        ).test.tolist()
        for ratio in (None, 1.0, 9.0)
    ]
    assert tests[0] == tests[1] == tests[2]


@pytest.mark.parametrize("unit", ["patient", "slice"])
def test_too_few_are_an_error_with_the_numbers(unit: str) -> None:
    splits, patients, positive = world(0, people=9)
    positive = positive if unit == "patient" else np.isin(patients, [0, 1, 2, 3, 4, 5, 6, 7])
    with pytest.raises(DataError, match="prevalence"):
        make_prevalence_split(splits, patients, positive, PrevalenceConfig(train=200, unit=unit), 0)
