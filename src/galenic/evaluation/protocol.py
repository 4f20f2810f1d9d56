"""From logits of validation and test to every document of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit, softmax

from galenic.core.config import Config
from galenic.evaluation.calibration import calibrate
from galenic.evaluation.classes import by_class
from galenic.evaluation.labels import by_label
from galenic.evaluation.metrics import MAIN, chosen_metrics, evaluate
from galenic.evaluation.operating import operating_points
from galenic.evaluation.subgroups import require_columns, subgroups

Array = np.ndarray[Any, np.dtype[Any]]
Rate = Annotated[float, Field(gt=0, le=1)]


class ScoreConfig(Config):
    """How predictions are scored."""

    resamples: int = Field(2000, ge=0, description="Bootstrap draws of patients.")
    level: float = Field(0.95, gt=0, lt=1, description="Of every interval.")
    metrics: list[str] | None = Field(
        None, description="Beside the main one; None: all that suit the label."
    )
    sensitivity: list[Rate] = Field([0.9], description="Wished on validation (binary).")
    specificity: list[Rate] = Field([0.9], description="Wished on validation (binary).")
    subgroups: list[str] = Field([], description="Columns whose levels are compared.")

    def names(self, kind: str) -> list[str]:
        """The metrics of a kind of label, the main one among them.

        Raises:
            ConfigError: If one does not suit the kind.
        """
        return list(dict.fromkeys([*chosen_metrics(kind, self.metrics), MAIN[kind]]))

    def require(self, kind: str, table: pd.DataFrame) -> None:
        """Check what only the cohort can tell, before anything is trained for it.

        Args:
            kind: Of the label.
            table: The manifest.

        Raises:
            ConfigError: If a metric does not suit the label.
            DataError: If a column of subgroups is not there.
        """
        self.names(kind)
        require_columns(table, self.subgroups)


@dataclass(frozen=True)
class Scored:
    """JSON documents by file name, and one row a scored sample."""

    documents: dict[str, Any]
    predictions: pd.DataFrame


def to_scores(kind: str, logits: Array, unit: tuple[float, float] = (0.0, 1.0)) -> Array:
    """Probabilities, or values in the target's own unit for a continuous one.

    Args:
        kind: Of the label.
        logits: [n] for binary and continuous, else [n, C].
        unit: Centre and spread of a continuous target.
    """
    if kind == "continuous":
        return logits.astype(np.float64) * unit[1] + unit[0]
    if kind in ("binary", "multilabel"):
        return expit(logits.astype(np.float64))
    return softmax(logits.astype(np.float64), axis=1)


def score(
    kind: str,
    classes: list[str],
    *,
    targets: dict[str, Array],
    logits: dict[str, Array],
    groups: dict[str, Array],
    rows: dict[str, Array],
    table: pd.DataFrame,
    config: ScoreConfig,
    seed: int,
    unit: tuple[float, float] = (0.0, 1.0),
) -> Scored:
    """Score `val` and `test`; whatever is fitted (temperature, thresholds) sees `val` alone.

    Args:
        kind: Of the label.
        classes: Names in the order of the logits.
        targets: Per part, as :mod:`galenic.data.labels` encodes them.
        logits: Per part.
        groups: Per part, integer code of the patient.
        rows: Per part, row numbers in the manifest.
        table: The manifest, for subgroup columns.
        config: What to compute.
        seed: Of the bootstrap.
        unit: Centre and spread of a continuous target.
    """
    scores = {part: to_scores(kind, values, unit) for part, values in logits.items()}
    options: dict[str, Any] = {
        "resamples": config.resamples,
        "level": config.level,
        "seed": seed,
    }
    names = config.names(kind)
    results = {
        part: {
            name: estimate.to_dict()
            for name, estimate in evaluate(
                kind, targets[part], scores[part], groups[part], names=names, **options
            ).items()
        }
        for part in scores
    }
    documents: dict[str, Any] = {
        "metrics.json": {
            "main": MAIN[kind],
            "kind": kind,
            "classes": classes,
            "test": results["test"],
            "validation": results["val"],
        }
    }
    if kind == "continuous":
        documents["metrics.json"]["unit"] = list(unit)
    else:
        documents["calibration.json"] = calibrate(
            kind,
            (targets["val"], logits["val"]),
            (targets["test"], logits["test"]),
            groups["test"],
            **options,
        )
    if kind not in ("continuous", "multilabel"):
        documents["classes.json"] = by_class(
            kind, classes, targets["test"], scores["test"], groups["test"], **options
        )
    if kind == "binary":
        documents["operating.json"] = operating_points(
            (targets["val"], scores["val"]),
            (targets["test"], scores["test"]),
            groups["test"],
            sensitivity=config.sensitivity,
            specificity=config.specificity,
            **options,
        )
    if kind == "multilabel":
        documents["labels.json"] = by_label(
            classes,
            (targets["val"], scores["val"]),
            (targets["test"], scores["test"]),
            groups["test"],
            **options,
        )
    if config.subgroups:
        documents["subgroups.json"] = subgroups(
            kind,
            targets["test"],
            scores["test"],
            groups["test"],
            table.iloc[rows["test"]],
            config.subgroups,
            **options,
        )
    return Scored(documents, _predictions(targets, scores, groups, rows))


def _predictions(
    targets: dict[str, Array],
    scores: dict[str, Array],
    groups: dict[str, Array],
    rows: dict[str, Array],
) -> pd.DataFrame:
    frames = []
    for part, values in scores.items():
        columns: dict[str, Any] = {"row": rows[part], "group": groups[part], "split": part}
        target = targets[part]
        if target.ndim == 1:
            columns["label"] = target
        else:
            columns |= {f"label_{c}": target[:, c] for c in range(target.shape[1])}
        wide = values[:, None] if values.ndim == 1 else values
        columns |= {f"score_{c}": wide[:, c] for c in range(wide.shape[1])}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
