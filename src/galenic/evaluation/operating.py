"""Operating points: a threshold fixed on validation, and what it does to test patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from galenic.evaluation import weighted
from galenic.evaluation.bootstrap import estimates

Array = np.ndarray[Any, np.dtype[Any]]
RATES = ("sensitivity", "specificity", "ppv", "npv", "f1")


def threshold_at(
    y: Array, scores: Array, *, sensitivity: float | None = None, specificity: float | None = None
) -> float:
    """The threshold t, predicted positive where score >= t, that grants a wish.

    A wished sensitivity takes the highest such t, a wished specificity the lowest.

    Args:
        y: 0 or 1 [n].
        scores: [n].
        sensitivity: Wished share of positives found.
        specificity: Wished share of negatives left alone.

    Returns:
        The threshold; NaN where the class that the wish is about is not there.
    """
    if sensitivity is not None:
        found = np.sort(scores[y == 1])[::-1]
        if not len(found):
            return float("nan")
        # The least count that reaches the wish, guarded against 0.9 * 10 = 9.000000000000002.
        need = max(int(np.ceil(sensitivity * len(found) - 1e-9)), 1)
        return float(found[need - 1])
    assert specificity is not None
    spared = np.sort(scores[y == 0])
    if not len(spared):
        return float("nan")
    need = int(np.ceil(specificity * len(spared) - 1e-9))
    if need == 0:
        return float(spared[0])
    return float(np.nextafter(spared[need - 1], np.inf))


def youden(y: Array, scores: Array) -> tuple[float, float]:
    """The threshold of the largest sensitivity + specificity - 1 (Youden, 1950), and that sum.

    Of several the highest threshold; NaN twice where a class is not there.
    """
    order = np.argsort(-scores, kind="stable")
    positive = y[order] == 1
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    found, wrong = np.cumsum(positive)[last], np.cumsum(~positive)[last]
    if not len(last) or not found[-1] or not wrong[-1]:
        return float("nan"), float("nan")
    # In whole numbers: rounding must not part equal sums.
    gain = found * wrong[-1] - wrong * found[-1]
    best = int(gain.argmax())
    return float(scores[order][last[best]]), float(gain[best] / (found[-1] * wrong[-1]))


def rates(y: Array, scores: Array, threshold: float, weights: Array) -> Array:
    """Sensitivity, specificity, PPV, NPV and F1 [R, 5] under weights [R, n]."""
    table = weighted.confusion(y.astype(int), (scores >= threshold).astype(int), 2, weights)
    tn, fp, fn, tp = (table[:, i, j] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
    pairs = (
        (tp, tp + fn), (tn, tn + fp), (tp, tp + fp), (tn, tn + fn), (2 * tp, 2 * tp + fp + fn),
    )  # fmt: skip
    columns = [np.where(b > 0, a / np.where(b > 0, b, 1), np.nan) for a, b in pairs]
    return np.stack(columns, axis=1)


def operating_points(
    validation: tuple[Array, Array],
    test: tuple[Array, Array],
    groups: Array,
    *,
    sensitivity: Sequence[float],
    specificity: Sequence[float],
    resamples: int,
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    """One entry a wish, and one for Youden's threshold.

    Each has its threshold from validation, and its rates with intervals on test.

    Args:
        validation: Labels and scores.
        test: Labels and scores.
        groups: Patient of each test sample.
        sensitivity: Wishes.
        specificity: Wishes.
        resamples: For the intervals.
        level: Of the intervals.
        seed: Of the draws.
    """
    wishes: list[dict[str, Any]] = [{"sensitivity": wish} for wish in sensitivity]
    wishes += [{"specificity": wish} for wish in specificity]
    points = [(wish, threshold_at(*validation, **wish)) for wish in wishes]
    balanced, gain = youden(*validation)
    points.append(({"youden": gain}, balanced))
    y, scores = test
    found = []
    for wish, threshold in points:
        entry: dict[str, Any] = {"wished": wish, "threshold": threshold}
        if np.isnan(threshold):
            entry["note"] = "validation has no patient of the class that the wish is about"
            found.append(entry)
            continue

        def metric(weights: Array, threshold: float = threshold) -> Array:
            return rates(y, scores, threshold, weights)

        figures = estimates(metric, groups, resamples=resamples, level=level, seed=seed)
        entry |= {name: f.to_dict() for name, f in zip(RATES, figures, strict=True)}
        found.append(entry)
    return found
