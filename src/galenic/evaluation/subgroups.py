"""Does it work for everyone? One metric by the levels of a column, and the gap between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from galenic.core.errors import DataError, nearest
from galenic.evaluation.bootstrap import estimate, resampled
from galenic.evaluation.metrics import MAIN, evaluate, metric_function

Array = np.ndarray[Any, np.dtype[Any]]
MOST_LEVELS = 8
SMALL = 30
# Significant digits of the ends of a level: so many, and as many as tell any two floats apart.
DIGITS, EXACT = 4, 17


def subgroups(
    kind: str,
    y: Array,
    scores: Array,
    groups: Array,
    table: pd.DataFrame,
    columns: Sequence[str],
    *,
    resamples: int,
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    """The main metric by level of each column, and the largest gap with its interval.

    Numbers with more than eight values are cut at their quartiles; rare levels of a category
    are joined; a missing value is a level of its own.

    Args:
        kind: Of the label.
        y: Labels.
        scores: Predictions.
        groups: Patient of each sample.
        table: Rows of the manifest, aligned with `y`.
        columns: Columns to compare.
        resamples: For the intervals.
        level: Of the intervals.
        seed: Of the draws.

    Raises:
        DataError: If a column is not there.
    """
    require_columns(table, columns)
    name = MAIN[kind]
    found = []
    for column in columns:
        levels = levels_of(table[column])
        entries = []
        for value in sorted(set(levels)):
            rows = levels == value
            result = evaluate(
                kind, y[rows], scores[rows], groups[rows], resamples=resamples, level=level,
                seed=seed, names=[name],
            )[name]  # fmt: skip
            entries.append(
                {
                    "level": value,
                    "n": int(rows.sum()),
                    "small": bool(result.n < SMALL),
                    "estimate": result.to_dict(),
                }
            )
        gap = _gap(kind, name, y, scores, levels)
        drawn = resampled(gap, groups, resamples, seed)
        whole = gap(np.ones((1, len(y))))[0]
        found.append(
            {
                "column": column,
                "metric": name,
                "levels": entries,
                "gap": estimate(whole, drawn, level, len(np.unique(groups))).to_dict(),
            }
        )
    return found


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Check that a manifest has the columns of subgroups.

    Raises:
        DataError: Naming the first that is not there, and the nearest that is.
    """
    for column in columns:
        if column not in table:
            raise DataError(
                f"There is no column '{column}'. {nearest(column, table.columns)}".strip(),
                where="score.subgroups",
                expected="columns of the manifest",
            )


def levels_of(values: pd.Series) -> Array:
    """A level a sample, as text."""
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > MOST_LEVELS:
        part, edges = pd.qcut(values, 4, labels=False, retbins=True, duplicates="drop")
        ends = _told_apart(edges)
        names = {place: f"{low} to {high}" for place, (low, high) in enumerate(pairwise(ends))}
        return part.map(names).fillna("missing").to_numpy()
    text = values.astype(object).where(values.notna(), "missing").astype(str)
    common = text.value_counts().index[:MOST_LEVELS]
    return text.where(text.isin(common), "other").to_numpy()


def _told_apart(numbers: Array) -> list[str]:
    """Different numbers as different texts, of as few digits as that takes."""
    texts: list[str] = []
    for digits in range(DIGITS, EXACT + 1):
        texts = [f"{number:.{digits}g}" for number in numbers]
        if len(set(texts)) == len(texts):
            break
    return texts


def _gap(kind: str, name: str, y: Array, scores: Array, levels: Array) -> Any:
    parts = []
    for value in sorted(set(levels)):
        rows = np.flatnonzero(levels == value)
        parts.append((rows, metric_function(kind, name, y[rows], scores[rows])))

    def gap(weights: Array) -> Array:
        values = np.stack([metric(weights[:, rows]) for rows, metric in parts], axis=1)
        defined = ~np.isnan(values)
        high = np.where(defined, values, -np.inf).max(axis=1)
        low = np.where(defined, values, np.inf).min(axis=1)
        return np.where(defined.sum(axis=1) > 1, high - low, np.nan)

    return gap
