"""Arrays for the report's plots."""

from __future__ import annotations

from typing import Any

import numpy as np

from galenic.evaluation import weighted
from galenic.evaluation.metrics import decide

Array = np.ndarray[Any, np.dtype[Any]]
MOST_POINTS = 400


def roc_curve(y: Array, scores: Array) -> tuple[Array, Array]:
    """False and true positive rates from (0, 0) to (1, 1), at most 400 points; y in {0, 1}."""
    found, named, _ = _descending(y, scores)
    wrong = named - found
    if found[-1] == 0 or wrong[-1] == 0:
        return np.array([]), np.array([])
    return _thin(np.r_[0, wrong / wrong[-1]], np.r_[0, found / found[-1]])


def pr_curve(y: Array, scores: Array) -> tuple[Array, Array]:
    """Recall ascending and precision, at most 400 points; y in {0, 1}."""
    found, named, _ = _descending(y, scores)
    if found[-1] == 0:
        return np.array([]), np.array([])
    precision = found / named
    return _thin(np.r_[0, found / found[-1]], np.r_[precision[0], precision])


def confusion_table(kind: str, y: Array, scores: Array) -> Array:
    """Counts [C, C], truth by prediction."""
    predicted, classes = decide(kind, scores)
    known = y >= 0
    ones = np.ones((1, int(known.sum())))
    return weighted.confusion(y[known], predicted[known], classes, ones)[0].astype(int)


def _descending(y: Array, scores: Array) -> tuple[Array, Array, Array]:
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    return np.cumsum(y[order] == 1)[ends], ends + 1, ordered[ends]


def _thin(x: Array, y: Array) -> tuple[Array, Array]:
    if len(x) <= MOST_POINTS:
        return x, y
    keep = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return x[keep], y[keep]
