"""Levels of a column: their names tell them apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galenic.core.errors import DataError
from galenic.evaluation.subgroups import levels_of, require_columns, subgroups


@pytest.mark.parametrize(
    "values",
    [
        20230101 + np.arange(60),
        1e-9 * np.arange(60) + 1,
        np.arange(60) - 30.5,
        pd.array(range(60), dtype="Int64"),
    ],
)
def test_quartiles_are_four_levels_of_as_many(values: np.ndarray) -> None:
    found = levels_of(pd.Series(values))
    assert sorted(pd.Series(found).value_counts()) == [15, 15, 15, 15]
    # In the order of the column, each level is one run.
    assert (found[1:] != found[:-1]).sum() == 3


def test_a_missing_value_is_a_level_and_a_level_says_its_ends() -> None:
    found = levels_of(pd.Series([*range(0, 90, 10), None]))
    assert found.tolist() == [
        *["0 to 20"] * 3,
        *["20 to 40"] * 2,
        *["40 to 60"] * 2,
        *["60 to 80"] * 2,
        "missing",
    ]


def test_dates_as_numbers_have_a_gap() -> None:
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 2, 200), rng.random(200)
    table = pd.DataFrame({"date": rng.integers(20230101, 20231231, 200)})
    [found] = subgroups(
        "binary", y, scores, np.arange(200), table, ["date"], resamples=0, level=0.95, seed=0
    )
    values = [entry["estimate"]["value"] for entry in found["levels"]]
    assert len(values) == 4
    assert found["gap"]["value"] == pytest.approx(max(values) - min(values))


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"'sexx'.*'sex'"):
        require_columns(pd.DataFrame({"sex": ["f"], "age": [3]}), ["age", "sexx"])
