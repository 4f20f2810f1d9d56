"""Classes, grades, findings and measurements of other samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from scipy.special import logit
from torch import nn

from galenic.core.config import parse
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.labels import missing
from galenic.data.tabular import TabularEncoder
from galenic.evaluation.protocol import score, to_scores
from galenic.models.backbone import Backbone
from galenic.objectives.classification import Classifier, TargetKind
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.inputs import Collate
from galenic.pipeline.levels import LevelEncoder
from galenic.pipeline.opening import ENCODING
from galenic.pipeline.votes import logits_of
from galenic.tasks import _classify_config, _heads, probe
from galenic.tasks._predict_config import TABLE, Config
from galenic.tasks._predict_opening import cohort_of, label_in, network_of

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Trained:
    """What a run of `classify` or `probe` left.

    Attributes:
        run: Its folder.
        config: What it was told.
        kind: Of the label.
        classes: In the order of the logits; () of a continuous label.
        unit: Centre and spread of a continuous target.
    """

    run: Run
    config: _classify_config.Config
    kind: str
    classes: tuple[str, ...]
    unit: tuple[float, float]

    @classmethod
    def open(cls, run: Run) -> Trained:
        """Read the folder."""
        kind = probe.Config if run.provenance["task"] == "probe" else _classify_config.Config
        found = run.read_json("metrics.json")
        centre, spread = found.get("unit", (0.0, 1.0))
        config = parse(kind, run.config, str(run.path))
        return cls(run, config, found["kind"], tuple(found["classes"]), (centre, spread))

    def parts(self, backbone: Backbone) -> tuple[nn.Module, nn.Module]:
        """Encoder and head on the network of the run."""
        state = load_file(self.run.path / "head.safetensors")
        if isinstance(self.config, probe.Config):
            chosen = probe.Choice(**self.run.read_json("probe.json")["chosen"])
            levels = LevelEncoder(backbone, max(self.config.probe.blocks))
            return levels, probe.restored(levels, chosen, state)
        return PooledEncoder(backbone), _heads.restored(self.config.head, state)


def apply(config: Config, finished: Run, run: Run) -> int:
    """Predict and, where there are labels, score; gives the number of parameters.

    Args:
        config: What was asked.
        finished: The run that was trained.
        run: Where it goes.
    """
    trained, encoder = Trained.open(finished), None
    if (finished.path / ENCODING).is_file():
        encoder = TabularEncoder.of(finished.read_json(ENCODING))
    own = trained.config
    cohort = cohort_of(config, finished, own.columns, encoder)
    columns = list(cohort.table.columns)
    spec = label_in(columns, config.columns, own.columns, trained.kind, trained.classes)
    cohort = replace(cohort, label=spec)
    backbone, inputs = network_of(finished, own, cohort, run, encoder)
    objective = Classifier(*trained.parts(backbone), cast("TargetKind", trained.kind))
    size = config.batch_size or own.schedule.eval_batch_size
    logits = predict(objective, inputs, collate=Collate.of(backbone), batch_size=size)["logits"]
    if own.head.kind == "knn":
        logits = logits_of(trained.kind, logits)
    run.write_text(TABLE, _table(trained, logits).to_csv(index=False))
    if spec is not None:
        _score(config, trained, cohort, logits, run)
    return count_parameters(objective)[1]


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


def _score(config: Config, trained: Trained, cohort: Cohort, logits: Array, run: Run) -> None:
    """Write every figure; temperature and thresholds are those of the run's own validation."""
    targets = cohort.targets()
    rows = np.flatnonzero(~missing(targets))
    if not len(rows):
        tell("No sample has a label: nothing is scored.")
        return
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
        groups={"val": known["group"].to_numpy(), "test": cohort.patient_ids[rows]},
        rows={"val": known["row"].to_numpy(), "test": rows},
        table=cohort.table,
        config=config.score,
        seed=config.seed,
        unit=trained.unit,
    )
    for name, document in scored.documents.items():
        run.write_json(name, document)
    predictions = scored.predictions
    run.write_table("predictions.parquet", predictions[predictions["split"] == "test"])


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
