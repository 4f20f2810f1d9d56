"""Columns of a plain table as one matrix, fitted on training rows only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from galenic.core.errors import DataError
from galenic.data.tables import words

Array = np.ndarray[Any, np.dtype[Any]]
MOST_CATEGORIES = 50


@dataclass(frozen=True)
class TabularEncoder:
    """Standardised numbers with a flag for missing, and one column a category.

    Attributes:
        numeric: Per column median, mean and standard deviation of the training rows.
        flagged: Numeric columns that miss values in training; each gets a 0/1 column.
        categories: Per column the values seen in training; others fall into no column.
    """

    numeric: dict[str, tuple[float, float, float]]
    flagged: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]

    @classmethod
    def fit(cls, table: pd.DataFrame, rows: Array) -> TabularEncoder:
        """Learn medians, means, spreads and categories from `rows` of `table`.

        Raises:
            DataError: If a number is infinite, or nothing is left to learn from.
        """
        train = table.iloc[rows]
        numeric: dict[str, tuple[float, float, float]] = {}
        flagged, categories = [], {}
        for column in table.columns:
            values = train[column]
            if not pd.api.types.is_numeric_dtype(values):
                seen = words(values).value_counts()
                categories[column] = tuple(sorted(seen.index[:MOST_CATEGORIES]))
                continue
            numbers = table[column].to_numpy(dtype=float, na_value=np.nan)
            if np.isinf(numbers).any():
                row = int(np.flatnonzero(np.isinf(numbers))[0])
                raise DataError("The value is infinite.", where=f"row {row}, column '{column}'")
            known = values.dropna().to_numpy(dtype=float)
            if not len(known):
                continue
            median = float(np.median(known))
            filled = np.where(np.isnan(numbers[rows]), median, numbers[rows])
            # The spread of equal numbers may be off zero by rounding.
            spread = float(filled.std()) if np.ptp(filled) else 1.0
            numeric[column] = (median, float(filled.mean()), spread)
            if values.isna().any():
                flagged.append(column)
        if not numeric and not any(categories.values()):
            raise DataError("No feature column has a value in training.")
        return cls(numeric, tuple(flagged), categories)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> TabularEncoder:
        """What :meth:`state` gave, read back."""
        numeric = {name: tuple(values) for name, values in state["numeric"].items()}
        known = {name: tuple(values) for name, values in state["categories"].items()}
        return cls(numeric, tuple(state["flagged"]), known)

    @property
    def columns(self) -> list[str]:
        """The columns of a table that it reads."""
        return [*self.numeric, *self.categories]

    @property
    def names(self) -> list[str]:
        """Name of each column of the matrix."""
        return [
            *self.numeric,
            *(f"{column} is missing" for column in self.flagged),
            *(
                f"{column} = {value}"
                for column, known in self.categories.items()
                for value in known
            ),
        ]

    def transform(self, table: pd.DataFrame) -> Array:
        """float32 [n, F].

        Raises:
            DataError: If a cell holds a word where training had numbers.
        """
        columns: list[Array] = []
        for column, (median, mean, spread) in self.numeric.items():
            values = _numbers(table[column])
            columns.append((np.where(np.isnan(values), median, values) - mean) / spread)
        columns += [table[column].isna().to_numpy(dtype=float) for column in self.flagged]
        for column, known in self.categories.items():
            cells = words(table[column]).to_numpy()
            columns += [(cells == value).astype(float) for value in known]
        return np.stack(columns, axis=1).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """What was learnt, for JSON."""
        return {
            "numeric": {name: list(values) for name, values in self.numeric.items()},
            "flagged": list(self.flagged),
            "categories": {name: list(values) for name, values in self.categories.items()},
        }


def _numbers(column: pd.Series) -> Array:
    found = pd.to_numeric(column, errors="coerce")
    words = found.isna() & column.notna()
    if words.any():
        raise DataError(
            "A cell is no number.",
            where=f"row {int(np.flatnonzero(words)[0])}, column '{column.name}'",
            expected="a number, as in training, or nothing",
        )
    return found.to_numpy(dtype=float, na_value=np.nan)
