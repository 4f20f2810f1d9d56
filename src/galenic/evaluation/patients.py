"""From slices to patients: who is called ill, and how often that is right (PTP).

The unit is the patient: somebody with 500 slices counts once. Rule and threshold are those of
"Realism in Action" (arXiv 2401.03302) as far as the paper says them; it leaves the rule open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from scipy.stats import norm

from galenic.core.config import Config
from galenic.evaluation import operating, weighted
from galenic.evaluation.bootstrap import Estimate, estimate, resampled

Array = np.ndarray[Any, np.dtype[Any]]


class PatientRule(Config):
    """When a patient is called ill: enough slices whose surest box is at least so sure."""

    threshold: float | None = Field(
        None, ge=0, le=1, description="Score of a slice that counts; None: tuned on validation."
    )
    min_slices: int = Field(1, ge=1, description="Slices that must count.")
    fraction: float | None = Field(
        None, gt=0, le=1, description="Share of the patient's slices that must count, too."
    )
    consecutive: bool = Field(False, description="The slices must be neighbours.")
    min_iou: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Of a truly ill patient only boxes count that overlap a true one so far.",
    )
    order: str | None = Field(
        None, description="Column that orders the slices; None: as they stand in the manifest."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> PatientRule:
        if self.consecutive and self.fraction is not None:
            raise ValueError("consecutive goes with min_slices, not with fraction")
        return self


def patient_scores(scores: Array, patients: Array, rule: PatientRule) -> Array:
    """The highest threshold at which each patient is still called ill [P].

    A patient is called ill at threshold t if his score is at least t, so that one number a patient
    holds the decision at every threshold.

    Args:
        scores: Of the slices, in their order [n].
        patients: Whose slice it is [n].
        rule: When a patient is called ill.

    Returns:
        In the order of `numpy.unique(patients)`; -inf where there are too few slices.
    """
    codes, place = np.unique(patients, return_inverse=True)
    if rule.consecutive:
        order = np.argsort(place, kind="stable")
        window, owner = scores[order], place[order]
        lowest = np.full(len(window), -np.inf)
        last = rule.min_slices - 1
        whole = len(window) - last
        if whole > 0:
            same = owner[:whole] == owner[last:]
            views = np.lib.stride_tricks.sliding_window_view(window, rule.min_slices)
            lowest[:whole] = np.where(same, views.min(axis=1), -np.inf)
        found = np.full(len(codes), -np.inf)
        np.maximum.at(found, owner, lowest)
        return found
    counts = np.bincount(place, minlength=len(codes))
    need = np.full(len(codes), rule.min_slices)
    if rule.fraction is not None:
        need = np.maximum(need, np.ceil(rule.fraction * counts - 1e-9).astype(int))
    falling = scores[np.lexsort((-scores, place))]
    first = np.cumsum(counts) - counts
    enough = need <= counts
    taken = falling[np.where(enough, first + need - 1, first)]
    return np.where(enough, taken, -np.inf)


def tuned_threshold(ill: Array, scores: Array) -> float:
    """Youden's threshold, half-way down to the next score below it; NaN where a kind is missing.

    Every threshold between the two decides alike on these patients; Youden's own is a patient's
    score, and would miss the next one who scores a little less.

    Args:
        ill: 1 for a patient who is [P].
        scores: Of :func:`patient_scores` [P].
    """
    finite = np.where(np.isfinite(scores), scores, 0.0)
    best, _ = operating.youden(ill, finite)
    below = finite[finite < best]
    return float((best + below.max()) / 2) if len(below) else float(best)


def wilson(hits: float, total: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (1927); NaN twice where there is nothing to count."""
    if total <= 0:
        return float("nan"), float("nan")
    z = float(norm.ppf((1 + level) / 2))
    share, extra = hits / total, z**2 / total
    middle = (share + extra / 2) / (1 + extra)
    half = z * np.sqrt(share * (1 - share) / total + extra / (4 * total)) / (1 + extra)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def ppv_at(sensitivity: Array, specificity: Array, prevalence: float) -> Array:
    """Share of those called ill who are, were so many of all ill (Bayes)."""
    right = np.asarray(sensitivity) * prevalence
    wrong = (1 - np.asarray(specificity)) * (1 - prevalence)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(right + wrong > 0, right / (right + wrong), np.nan)


NAMES = (*(f"ptp_{name}" for name in operating.RATES), "ptp_accuracy", "ptp_auroc")


def ptp(
    ill: Array,
    scores: Array,
    threshold: float,
    *,
    resamples: int,
    level: float,
    seed: int,
    prevalences: Sequence[float] = (),
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Figures over patients at one threshold, with bootstrap intervals over patients.

    Args:
        ill: 1 for a patient who is [P].
        scores: Of :func:`patient_scores` [P].
        threshold: Fixed before, on other patients.
        resamples: Bootstrap draws of patients.
        level: Of every interval.
        seed: Of the draws.
        prevalences: Shares of ill ones at which the precision is asked for.

    Returns:
        The figures of :data:`NAMES`; and counts, Wilson's intervals and precision at other
        prevalences, for JSON.
    """
    finite = np.where(np.isfinite(scores), scores, -1.0)

    def metric(weights: Array) -> Array:
        called = (finite >= threshold).astype(int)
        table = weighted.confusion(ill.astype(int), called, 2, weights)
        columns = [
            operating.rates(ill, finite, threshold, weights),
            weighted.accuracy(table)[:, None],
            weighted.auroc(ill, finite, weights)[:, None],
        ]
        return np.concatenate(columns, axis=1)

    value = metric(np.ones((1, len(ill)), np.int64))[0]
    drawn = resampled(metric, np.arange(len(ill)), resamples, seed).reshape(-1, len(NAMES))
    figures = {
        name: estimate(value[place], drawn[:, place], level, len(ill))
        for place, name in enumerate(NAMES)
    }
    at = {}
    for share in prevalences:
        precision = ppv_at(value[:1], value[1:2], share)[0]
        others = ppv_at(drawn[:, 0], drawn[:, 1], share)
        at[f"{share:g}"] = estimate(precision, others, level, len(ill)).to_dict()
    return figures, {**_counted(ill, finite, threshold, level), "precision_at": at}


def _counted(ill: Array, scores: Array, threshold: float, level: float) -> dict[str, Any]:
    called = scores >= threshold
    tp, fp = int((called & (ill == 1)).sum()), int((called & (ill == 0)).sum())
    fn, tn = int((~called & (ill == 1)).sum()), int((~called & (ill == 0)).sum())
    shares = {
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
    }
    return {
        "counts": {"tp": tp, "fp": fp, "fn": fn, "tn": tn},
        "prevalence": float(ill.mean()),
        "wilson": {name: wilson(*pair, level) for name, pair in shares.items()},
    }
