"""Metrics by name and kind of label, each with a patient-level interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from galenic.core.errors import ConfigError, DataError, nearest
from galenic.evaluation import weighted
from galenic.evaluation.bootstrap import Difference, Estimate, difference, estimates, resampled

Array = np.ndarray[Any, np.dtype[Any]]
Metric = Callable[[Array], Array]

MAIN = {
    "binary": "auroc",
    "multiclass": "balanced_accuracy",
    "multilabel": "auroc",
    "ordinal": "quadratic_kappa",
    "continuous": "r2",
}
_CLASSES = (
    "auroc", "auprc", "accuracy", "balanced_accuracy", "macro_f1", "minority_recall", "mcc",
    "brier", "ece",
)  # fmt: skip
NAMES = {
    "binary": _CLASSES,
    "multiclass": _CLASSES,
    "ordinal": ("quadratic_kappa", "mae", *_CLASSES),
    "multilabel": ("auroc", "auprc", "macro_f1", "brier"),
    "continuous": ("r2", "mae", "rmse", "concordance"),
}
SMALLER_IS_BETTER = {
    "brier",
    "ece",
    "mae",
    "rmse",
    "control_cost",
    "loss",
    "image_loss",
    "text_loss",
    "hd95",
    "assd",
    "perplexity",
}


def greater_is_better(name: str) -> bool:
    """Whether more of a metric is better."""
    return name not in SMALLER_IS_BETTER


def evaluate(
    kind: str,
    y: Array,
    scores: Array,
    groups: Array | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """All metrics that suit a kind of label.

    Args:
        kind: binary, multiclass, ordinal, multilabel or continuous.
        y: [n] integer classes, [n, C] of 0, 1, NaN (multilabel), or [n] values.
        scores: Probabilities of the positive class [n], of the classes [n, C], or values [n].
        groups: Patient of each sample [n]; None for each sample its own.
        resamples: Bootstrap draws of patients.
        level: Of the intervals.
        seed: Of the draws.
        names: Metrics; None for all of the kind.

    Raises:
        DataError: If shapes do not fit, labels are none of the kind, or scores are not finite.
        ConfigError: If a metric is unknown or does not suit the kind.
    """
    y, scores, groups = _checked(kind, y, scores, groups)
    chosen = chosen_metrics(kind, names)
    metrics = _together(kind, y, scores, chosen)
    found = estimates(metrics, groups, resamples=resamples, level=level, seed=seed)
    return dict(zip(chosen, found, strict=True))


def point(kind: str, name: str, y: Array, scores: Array) -> float:
    """One metric, without an interval."""
    return evaluate(kind, y, scores, resamples=0, names=[name])[name].value


def redrawn(
    kind: str,
    name: str,
    y: Array,
    scores: Array,
    groups: Array | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, Array]:
    """One metric, and its values [resamples] on resampled patients: for figures made of several.

    The same patients and seed give the same draws, whatever the scores.
    """
    y, scores, groups = _checked(kind, y, scores, groups)
    metric = _together(kind, y, scores, chosen_metrics(kind, [name]))
    drawn = resampled(metric, groups, resamples, seed).reshape(-1)
    return float(metric(np.ones((1, len(y))))[0, 0]), drawn


def paired_difference(
    kind: str,
    name: str,
    y: Array,
    scores_a: Array,
    scores_b: Array,
    groups: Array | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Metric of model a minus metric of model b, both on the same resampled patients.

    Args:
        kind: Of the label.
        name: Of the metric.
        y: As for :func:`evaluate`.
        scores_a: Of the first model.
        scores_b: Of the second, in the same order.
        groups: Patient of each sample.
        resamples: Bootstrap draws.
        level: Of the interval.
        seed: Of the draws.
    """
    y, scores_a, groups = _checked(kind, y, scores_a, groups)
    scores_b = _checked(kind, y, scores_b, groups)[1]
    chosen = chosen_metrics(kind, [name])
    first, second = (_together(kind, y, s, chosen) for s in (scores_a, scores_b))

    def gap(weights: Array) -> Array:
        return (first(weights) - second(weights))[:, 0]

    value = gap(np.ones((1, len(y))))[0]
    return difference(value, resampled(gap, groups, resamples, seed), level)


def _together(kind: str, y: Array, scores: Array, names: Sequence[str]) -> Metric:
    """All named metrics at once: weights [R, n] to values [R, len(names)]."""
    table_metrics = {
        "accuracy": weighted.accuracy,
        "balanced_accuracy": weighted.balanced_accuracy,
        "macro_f1": weighted.macro_f1,
        "minority_recall": lambda table: weighted.class_rates(table)[0][:, rarest(y)],
        "mcc": weighted.mcc,
        "mae": weighted.steps_away,
        "quadratic_kappa": weighted.quadratic_kappa,
    }
    single = _single(kind, y, scores)

    def compute(weights: Array) -> Array:
        table = None
        columns = []
        for name in names:
            if name in single:
                columns.append(single[name](weights))
                continue
            if table is None:
                predicted, classes = decide(kind, scores)
                table = weighted.confusion(y, predicted, classes, weights)
            columns.append(table_metrics[name](table))
        return np.stack(columns, axis=1)

    return compute


def rarest(y: Array) -> int:
    """The class with the fewest samples of those that occur in `y`, the first of several."""
    classes, counts = np.unique(y, return_counts=True)
    return int(classes[counts.argmin()])


def decide(kind: str, scores: Array) -> tuple[Array, int]:
    """The predicted class of each sample, and how many classes there are."""
    if kind == "binary":
        return (scores >= 0.5).astype(int), 2
    return scores.argmax(axis=1), scores.shape[1]


def _single(kind: str, y: Array, scores: Array) -> dict[str, Metric]:
    """Metrics that are no function of the confusion table."""
    if kind == "continuous":
        error = y - scores
        return {
            "r2": lambda w: weighted.r2(y, scores, w),
            "mae": lambda w: weighted.mean_of(np.abs(error), w),
            "rmse": lambda w: np.sqrt(weighted.mean_of(error**2, w)),
            "concordance": lambda w: weighted.concordance(y, scores, w),
        }
    if kind == "multilabel":
        return {
            "auroc": lambda w: weighted.over_labels(weighted.auroc, y, scores, w),
            "auprc": lambda w: weighted.over_labels(weighted.average_precision, y, scores, w),
            "macro_f1": lambda w: weighted.over_labels(_f1, y, scores, w),
            "brier": lambda w: weighted.over_labels(_brier, y, scores, w),
        }
    if kind == "binary":
        predicted = decide(kind, scores)[0]
        sure = np.where(predicted == 1, scores, 1 - scores)
        return {
            "auroc": lambda w: weighted.auroc(y, scores, w),
            "auprc": lambda w: weighted.average_precision(y, scores, w),
            "brier": lambda w: weighted.mean_of((scores - y) ** 2, w),
            "ece": lambda w: weighted.ece(sure, predicted == y, w),
        }
    truth = np.eye(scores.shape[1])[y]
    predicted, sure = scores.argmax(axis=1), scores.max(axis=1)
    return {
        "auroc": lambda w: weighted.over_labels(weighted.auroc, truth, scores, w),
        "auprc": lambda w: weighted.over_labels(weighted.average_precision, truth, scores, w),
        "brier": lambda w: weighted.mean_of(((scores - truth) ** 2).sum(axis=1), w),
        "ece": lambda w: weighted.ece(sure, predicted == y, w),
    }


def _f1(y: Array, scores: Array, weights: Array) -> Array:
    predicted = scores >= 0.5
    both = 2 * weights @ ((y == 1) & predicted).astype(float)
    total = weights @ ((y == 1).astype(float) + predicted)
    return np.where(total > 0, both / np.where(total > 0, total, 1), np.nan)


def _brier(y: Array, scores: Array, weights: Array) -> Array:
    return weighted.mean_of((scores - y) ** 2, weights)


def chosen_metrics(kind: str, names: Sequence[str] | None) -> list[str]:
    """The metrics that are asked for of a kind of label; all of them where none is named.

    Raises:
        ConfigError: If one is unknown or does not suit the kind.
    """
    known = NAMES[kind]
    for name in names or ():
        if name not in known:
            raise ConfigError(
                f"There is no metric '{name}' for a {kind} label. {nearest(name, known)}".strip(),
                expected=", ".join(known),
            )
    return list(names or known)


def _checked(
    kind: str, y: Array, scores: Array, groups: Array | None
) -> tuple[Array, Array, Array]:
    if kind not in NAMES:
        raise ConfigError(f"There is no kind of label '{kind}'.", expected=", ".join(NAMES))
    y, scores = np.asarray(y), np.asarray(scores, dtype=np.float64)
    wide = kind in ("multiclass", "ordinal", "multilabel")
    shape = scores.shape if kind == "multilabel" else scores.shape[:1]
    if y.shape != shape or scores.ndim != 1 + wide or not len(y):
        raise DataError(
            f"Labels {y.shape} and scores {scores.shape} do not fit a {kind} label.",
            expected="[n] and [n, C]" if wide else "[n] and [n], n at least 1",
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        rows = np.unique(np.nonzero(bad)[0])
        raise DataError(f"{len(rows)} of {len(scores)} scores are not finite.")
    y = _labels(kind, y, scores.shape[1] if kind in ("multiclass", "ordinal") else 2)
    groups = np.arange(len(y)) if groups is None else np.asarray(groups)
    if len(groups) != len(y):
        raise DataError(f"{len(groups)} patients for {len(y)} samples.", expected="one a sample")
    return y, scores, groups


def _labels(kind: str, y: Array, classes: int) -> Array:
    """Labels as metrics take them: floats where they may be any number or unknown, else codes."""
    floats = kind in ("continuous", "multilabel")
    y = y.astype(np.float64) if floats else y
    if kind == "continuous":
        good, expected = np.isfinite(y), "finite numbers"
    elif kind == "multilabel":
        good, expected = np.isin(y, (0, 1)) | np.isnan(y), "0, 1, or NaN for unknown"
    else:
        good, expected = np.isin(y, np.arange(classes)), f"codes from 0 to {classes - 1}"
    if not good.all():
        rows = np.unique(np.nonzero(~good)[0])
        raise DataError(
            f"{len(rows)} of {len(y)} labels do not fit a {kind} label.",
            where=f"row {rows[0]}" + (" and others" if len(rows) > 1 else ""),
            expected=expected,
            next_step="Leave out what has no label, and code the classes from 0.",
        )
    return y if floats else y.astype(np.int64)


def metric_function(kind: str, name: str, y: Array, scores: Array) -> Metric:
    """One metric as a function of sample weights: [R, n] to [R]."""
    y, scores, _ = _checked(kind, y, scores, None)
    together = _together(kind, y, scores, chosen_metrics(kind, [name]))
    return lambda weights: together(weights)[:, 0]
