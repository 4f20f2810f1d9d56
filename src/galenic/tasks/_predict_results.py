"""What is written of predicted classes, grades, findings and measurements, and their figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.special import logit

from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.labels import LabelKind, LabelSpec, missing
from galenic.evaluation.protocol import Scored, score, to_scores
from galenic.tasks._predict_config import TABLE, Config

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Trained:
    """What a finished run says of its label.

    Attributes:
        run: Its folder.
        kind: Of the label.
        classes: In the order of the logits; () of a continuous label.
        unit: Centre and spread of a continuous target.
    """

    run: Run
    kind: str
    classes: tuple[str, ...]
    unit: tuple[float, float]

    @classmethod
    def open(cls, run: Run) -> Trained:
        """Read the folder."""
        found = run.read_json("metrics.json")
        centre, spread = found.get("unit", (0.0, 1.0))
        return cls(run, found["kind"], tuple(found["classes"]), (centre, spread))

    @property
    def outputs(self) -> int:
        """Logits that say it."""
        return LabelSpec(cast("LabelKind", self.kind), (), self.classes).outputs


def tell_of(config: Config, trained: Trained, cohort: Cohort, logits: Array, run: Run) -> None:
    """Write the predictions and, where there are labels, every figure.

    Args:
        config: What was asked.
        trained: The run that predicts.
        cohort: The new samples; its label is None where there are none.
        logits: One row a sample.
        run: Where it goes.
    """
    run.write_text(TABLE, _table(trained, logits).to_csv(index=False))
    if cohort.label is None:
        return
    groups, table = cohort.patient_ids, cohort.table
    scored = score_known(config, trained, cohort.targets(), logits, groups, table)
    if scored is None:
        return
    for name, document in scored.documents.items():
        run.write_json(name, document)
    run.write_table("predictions.parquet", scored.predictions)


def _table(trained: Trained, logits: Array) -> pd.DataFrame:
    """One row a sample, in the order of the manifest."""
    scores = to_scores(trained.kind, logits, trained.unit)
    columns: dict[str, Any] = {"row": np.arange(len(logits))}
    if trained.kind == "continuous":
        return pd.DataFrame(columns | {"predicted": scores.reshape(-1)})
    if trained.kind == "multilabel":
        shares = {f"p_{name}": scores[:, place] for place, name in enumerate(trained.classes)}
        return pd.DataFrame(columns | shares)
    if trained.kind == "binary":
        scores = np.stack([1 - scores.reshape(-1), scores.reshape(-1)], axis=1)
    names = np.array(trained.classes, dtype=object)
    columns["predicted"] = names[scores.argmax(axis=1)]
    return pd.DataFrame(columns | {f"p_{n}": scores[:, k] for k, n in enumerate(names)})


def score_known(
    config: Config,
    trained: Trained,
    targets: Array,
    logits: Array,
    groups: Array,
    table: pd.DataFrame,
) -> Scored | None:
    """Every figure of the samples with a label; None where none has one.

    Temperature and thresholds are those of the run's own validation.

    Args:
        config: What was asked.
        trained: The run that predicts.
        targets: As :mod:`galenic.data.labels` encodes them, one row a sample.
        logits: One row a sample.
        groups: Patient of each.
        table: Columns of subgroups.
    """
    rows = np.flatnonzero(~missing(targets))
    if not len(rows):
        tell("No sample has a label: nothing is scored.")
        return None
    known = pd.read_parquet(trained.run.path / "predictions.parquet")
    known = known[known["split"] == "val"]
    labels = known.filter(regex="^label").to_numpy()
    scored = score(
        trained.kind,
        list(trained.classes),
        targets={
            "val": labels if trained.kind == "multilabel" else labels[:, 0],
            "test": targets[rows],
        },
        logits={"val": _unscored(trained, known), "test": logits[rows]},
        groups={"val": known["group"].to_numpy(), "test": groups[rows]},
        rows={"val": known["row"].to_numpy(), "test": rows},
        table=table,
        config=config.score,
        seed=config.seed,
        unit=trained.unit,
    )
    of_test = scored.predictions[scored.predictions["split"] == "test"]
    return Scored(scored.documents, of_test)


def _unscored(trained: Trained, known: pd.DataFrame) -> Array:
    """Logits that give the scores in the table of a run."""
    scores = known.filter(regex="^score").to_numpy(dtype=np.float64)
    if trained.kind == "continuous":
        return (scores[:, 0] - trained.unit[0]) / trained.unit[1]
    edge = np.finfo(np.float64).tiny
    if trained.kind in ("binary", "multilabel"):
        found = logit(np.clip(scores, edge, 1 - np.finfo(np.float64).epsneg))
        return found[:, 0] if trained.kind == "binary" else found
    return np.log(np.clip(scores, edge, None))
