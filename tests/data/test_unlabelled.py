"""Rows without a label in training: only those that a label would not keep out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from galenic.core.errors import DataError
from galenic.data.cohort import Cohort
from galenic.data.splits import ACCEPT, SplitConfig, make_splits, with_unlabelled

ROWS = 60


def table() -> pd.DataFrame:
    """Every fifth row has no label; sites, dates and parts go by blocks, and rows are patients."""
    number = np.arange(ROWS)
    return pd.DataFrame(
        {
            "patient_id": number,
            "age": np.sin(number),
            "label": np.where(number % 5 == 4, None, np.where(number % 2, "a", "b")),
            "site": np.where(number < 40, "north", "south"),
            "date": pd.date_range("2020-01-01", periods=ROWS).astype(str),
            "part": np.where(number < 30, "train", np.where(number < 40, "val", "test")),
        }
    )


def joined(made: pd.DataFrame, **config: Any) -> set[int]:
    """The rows that join training."""
    split = "part" if config["how"] == "given" else None
    cohort = Cohort.open(made, split=split)
    how = SplitConfig(**config)
    before = make_splits(cohort, how, 0)
    after = with_unlabelled(cohort, how, before)
    assert np.array_equal(after.val, before.val) and np.array_equal(after.test, before.test)
    assert set(before.train) <= set(after.train)
    return set(after.train) - set(before.train)


BARE = set(range(4, ROWS, 5))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"how": "given"}, {row for row in BARE if row < 30}),
        ({"how": "leave_site_out", "site": "south"}, {row for row in BARE if row < 40}),
        ({"how": "stratified"}, BARE),
    ],
    ids=lambda value: value.get("how") if isinstance(value, dict) else "",
)
def test_a_row_joins_where_a_label_would_have_put_it(
    config: dict[str, Any], expected: set[int]
) -> None:
    assert joined(table(), **config) == expected


@pytest.mark.parametrize("by", ["patient", ACCEPT])
def test_nothing_after_the_first_held_out_day_joins(by: str) -> None:
    made = table()
    how = {"how": "by_date", "date": "2020-02-10", "by": by}
    splits = make_splits(Cohort.open(made), SplitConfig(**how), 0)
    found = joined(made, **how)
    assert found == {row for row in BARE if row < splits.val.min()}
    made.loc[4, "date"] = None
    assert joined(made, **how) == found - {4}


def test_a_late_patient_with_early_visits_moves_no_cut() -> None:
    made = table()
    how = {"how": "by_date", "date": "2020-02-10"}
    found = joined(made, **how)
    # A patient of the test part came first of all.
    made.loc[0, "patient_id"] = 58
    assert joined(made, **how) == found


def test_blanks_join_by_their_part_and_not_by_their_site() -> None:
    made = table()
    made.loc[[4, 9], "site"] = None
    made.loc[[4, 39], "part"] = ["", " "]
    assert joined(made, how="leave_site_out", site="south").isdisjoint({4, 9})
    assert joined(made, how="given") == {row for row in BARE if row < 30} | {39}


def test_a_patient_who_is_held_out_without_a_label_stays_out() -> None:
    made = table()
    # One patient: an unlabelled row of the test part, and one that no part is said of.
    made.loc[[4, 59], "patient_id"] = 4
    made.loc[4, "part"] = ""
    assert 4 not in joined(made, how="given")
    assert 4 not in joined(made, how="leave_site_out", site="south")


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    how=st.sampled_from(["stratified", "few_shot", "kfold", "leave_site_out", "by_date"]),
)
def test_no_patient_of_training_is_held_out(seed: int, how: Any) -> None:
    rng = np.random.default_rng(seed)
    made = table().assign(patient_id=rng.integers(0, 40, ROWS))
    cohort, config = Cohort.open(made, split=None), SplitConfig(how=how, val=0.3)
    try:
        splits = with_unlabelled(cohort, config, make_splits(cohort, config, seed))
    except DataError:  # Patients who were seen at both sites leave a part empty.
        reject()
    held = cohort.patient_ids[np.concatenate([splits.val, splits.test])]
    assert not set(cohort.patient_ids[splits.train]) & set(held)
    assert len(np.unique(splits.train)) == len(splits.train)
