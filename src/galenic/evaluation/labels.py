"""Each label of a multi-label target by itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from galenic.evaluation.metrics import evaluate
from galenic.evaluation.operating import operating_points

Array = np.ndarray[Any, np.dtype[Any]]
METRICS = ("auroc", "auprc")


def by_label(
    classes: list[str],
    validation: tuple[Array, Array],
    test: tuple[Array, Array],
    groups: Array,
    *,
    resamples: int,
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    """AUROC, AUPRC and the rates at Youden's threshold of each label.

    What is unknown counts for nothing. A figure is NaN, and left out of every mean, where test
    has only one class of the label.

    Args:
        classes: Names.
        validation: Targets [n, C] of 0, 1 and NaN, and scores; the thresholds are fitted here.
        test: As `validation`.
        groups: Patient of each test sample.
        resamples: Bootstrap draws.
        level: Of the intervals.
        seed: Of the draws.
    """
    options: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    found = []
    for place, name in enumerate(classes):
        known, fitted = (~np.isnan(part[0][:, place]) for part in (test, validation))
        y, scores = test[0][known, place], test[1][known, place]
        entry: dict[str, Any] = {"label": name, "n": int(known.sum()), "positive": int(y.sum())}
        if known.any():
            metrics = evaluate("binary", y, scores, groups[known], names=METRICS, **options)
            entry["metrics"] = {key: estimate.to_dict() for key, estimate in metrics.items()}
            [entry["operating"]] = operating_points(
                (validation[0][fitted, place], validation[1][fitted, place]),
                (y, scores),
                groups[known],
                sensitivity=(),
                specificity=(),
                **options,
            )
        found.append(entry)
    return found
