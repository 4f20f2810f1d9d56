"""Are the probabilities true? Reliability, and one temperature to mend them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from galenic.evaluation import weighted
from galenic.evaluation.bootstrap import estimates
from galenic.evaluation.metrics import decide

Array = np.ndarray[Any, np.dtype[Any]]
BINS = 15
RANGE = (-3.0, 3.0)


def fit_temperature(kind: str, y: Array, logits: Array) -> float:
    """The temperature T that makes softmax(logits / T) likeliest (Guo et al., ICML 2017).

    Searched between e^-3 and e^3; 1 where there is nothing to fit on.

    Args:
        kind: binary, multiclass, ordinal or multilabel.
        y: Labels of the validation part.
        logits: Their logits.
    """

    def loss(log_t: float) -> float:
        return negative_log_likelihood(kind, y, logits / np.exp(log_t))

    if not len(y) or not np.isfinite(loss(0.0)):
        return 1.0
    found = minimize_scalar(loss, bounds=RANGE, method="bounded", options={"xatol": 1e-6})
    # The search may stop on an edge or a plateau; it must never make things worse.
    return float(np.exp(found.x)) if found.fun <= loss(0.0) else 1.0


def negative_log_likelihood(kind: str, y: Array, logits: Array) -> float:
    """Mean over samples, or over known labels."""
    logits = logits.astype(np.float64)
    if kind in ("binary", "multilabel"):
        known = ~np.isnan(y.astype(float))
        losses = -np.where(y == 1, log_expit(logits), log_expit(-logits))
        return float(losses[known].mean())
    return float(-log_softmax(logits, axis=1)[np.arange(len(y)), y].mean())


def confidence(kind: str, y: Array, logits: Array) -> tuple[Array, Array]:
    """Confidence in the decision and whether it was right; known labels one by one (multilabel)."""
    logits = logits.astype(np.float64)
    if kind in ("binary", "multilabel"):
        chance = expit(logits)
        known = ~np.isnan(y.astype(float))
        predicted = chance >= 0.5
        sure = np.where(predicted, chance, 1 - chance)
        return sure[known], (predicted == (y == 1))[known].astype(float)
    chance = softmax(logits, axis=1)
    predicted, _ = decide(kind, chance)
    return chance.max(axis=1), (predicted == y).astype(float)


def reliability(sure: Array, right: Array, bins: int = BINS) -> list[dict[str, float | int]]:
    """Mean confidence and accuracy in bins of equal width; empty bins are left out."""
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "confidence": float(sure[place == b].mean()),
            "accuracy": float(right[place == b].mean()),
            "count": int((place == b).sum()),
        }
        for b in range(bins)
        if (place == b).any()
    ]


def calibrate(
    kind: str,
    validation: tuple[Array, Array],
    test: tuple[Array, Array],
    groups: Array,
    *,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Temperature from validation; reliability and ECE of the test part before and after.

    Args:
        kind: Of the label.
        validation: Labels and logits.
        test: Labels and logits.
        groups: Patient of each test sample.
        resamples: For the intervals.
        level: Of the intervals.
        seed: Of the draws.
    """
    temperature = fit_temperature(kind, *validation)
    y, logits = test
    document: dict[str, Any] = {"temperature": temperature, "curve": {}}
    for name, divisor in {"before": 1.0, "after": temperature}.items():
        sure, right = confidence(kind, y, logits / divisor)
        patients = _patients(kind, y, groups)

        def metric(weights: Array, sure: Array = sure, right: Array = right) -> Array:
            return weighted.ece(sure, right, weights)

        [error] = estimates(metric, patients, resamples=resamples, level=level, seed=seed)
        document[name] = {
            "ece": error.to_dict(),
            "nll": negative_log_likelihood(kind, y, logits / divisor),
        }
        document["curve"][name] = reliability(sure, right)
    return document


def _patients(kind: str, y: Array, groups: Array) -> Array:
    if kind != "multilabel":
        return groups
    return np.broadcast_to(groups[:, None], y.shape)[~np.isnan(y)]
