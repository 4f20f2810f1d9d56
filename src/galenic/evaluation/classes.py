"""Each class of a binary, multiclass or ordinal target by itself: what accuracy hides."""

from __future__ import annotations

from typing import Any

import numpy as np

from galenic.evaluation import weighted
from galenic.evaluation.bootstrap import estimates
from galenic.evaluation.metrics import decide

Array = np.ndarray[Any, np.dtype[Any]]
RATES = ("recall", "precision", "f1")


def by_class(
    kind: str,
    classes: list[str],
    y: Array,
    scores: Array,
    groups: Array,
    *,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Recall, precision and F1 of each class with counts, and the patient-level recognition rate.

    That rate is the mean over patients of the share of their samples that are right (Spanhol et
    al., IEEE TBME 2016, for BreakHis).

    Args:
        kind: binary, multiclass or ordinal.
        classes: Names in the order of their codes.
        y: Classes [n].
        scores: As :func:`galenic.evaluation.metrics.evaluate` takes them.
        groups: Patient of each sample [n].
        resamples: Bootstrap draws of patients.
        level: Of the intervals.
        seed: Of the draws.

    Returns:
        `classes`: one entry a class; `patient_rate`: an estimate.
    """
    predicted, count = decide(kind, scores)
    _, patient, samples = np.unique(groups, return_inverse=True, return_counts=True)
    share, right = 1 / samples[patient], predicted == y

    def rates(weights: Array) -> Array:
        table = weighted.confusion(y, predicted, count, weights)
        by_patient = weighted.mean_of(right, weights * share)
        return np.column_stack([*(weighted.class_rates(table)), by_patient])

    every = estimates(rates, groups, resamples=resamples, level=level, seed=seed)
    figures = [figure.to_dict() for figure in every]
    found = [
        {
            "class": name,
            "n": int((y == place).sum()),
            "patients": len(np.unique(patient[y == place])),
            **{rate: figures[at * count + place] for at, rate in enumerate(RATES)},
        }
        for place, name in enumerate(classes)
    ]
    return {"classes": found, "patient_rate": figures[-1]}
