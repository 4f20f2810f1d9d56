"""A finished classifier on other samples; the data that it was trained on need not be there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from pydantic import Field
from safetensors.torch import load_file
from scipy.special import logit
from torch import nn

from galenic import tuners
from galenic.core.config import Config as BaseConfig
from galenic.core.config import parse
from galenic.core.errors import ConfigError, WeightsError
from galenic.core.meters import Meter, count_parameters
from galenic.core.prediction import predict
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.data.cohort import Cohort
from galenic.data.labels import LabelSpec, missing
from galenic.data.manifest import column_for, require_column
from galenic.data.tabular import TabularEncoder
from galenic.evaluation.protocol import ScoreConfig, score, to_scores
from galenic.models.backbone import Backbone
from galenic.objectives.classification import Classifier, TargetKind
from galenic.pipeline.config import Columns
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.inputs import Collate
from galenic.pipeline.levels import LevelEncoder
from galenic.pipeline.opening import ENCODING, describe, network_for, weights_of
from galenic.pipeline.votes import logits_of
from galenic.tasks import _classify_config, _heads, probe

Array = np.ndarray[Any, np.dtype[Any]]
TABLE = "predictions.csv"


# Tasks whose runs are taken, and what each was told.
TASKS: dict[str, type[_classify_config.Config]] = {
    "classify": _classify_config.Config,
    "probe": probe.Config,
}


class Config(BaseConfig):
    """Everything that `predict` can be told."""

    trained: str = Field(description="Folder of a finished run.")
    data: str
    columns: Columns = Columns()
    score: ScoreConfig = ScoreConfig()
    batch_size: int = Field(64, ge=1)
    seed: int = Field(0, ge=0, description="Of the bootstrap.")


@dataclass(frozen=True)
class Trained:
    """What a run left.

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
        """Read the folder.

        Raises:
            ConfigError: If it is not finished, or of a task that is not taken.
        """
        task = run.provenance.get("task")
        if task not in TASKS or run.state != "finished":
            fault = run.state if task in TASKS else f"of the task '{task}'"
            raise ConfigError(
                f"'{run.path.name}' is {fault}.",
                where=str(run.path),
                expected=f"a finished run of {' or '.join(TASKS)}, such as `galenic run linear`",
            )
        config = parse(TASKS[task], run.config, str(run.path))
        found = run.read_json("metrics.json")
        unit = found.get("unit", (0.0, 1.0))
        return cls(run, config, found["kind"], tuple(found["classes"]), (unit[0], unit[1]))

    def label_in(self, columns: Sequence[str], asked: Columns) -> LabelSpec | None:
        """Where a new manifest holds what is predicted; None where it does not.

        Raises:
            DataError: If the column that was asked for is not there.
        """
        own = asked.label or self.config.columns.label or column_for("label", None, columns)
        if own is None:
            return None
        names = (own,) if isinstance(own, str) else tuple(own)
        if asked.label is not None:
            for name in names:
                require_column(name, columns)
        if not set(names) <= set(columns):
            return None
        return LabelSpec(cast("Any", self.kind), names, self.classes)


def run(config: Config, run: Run) -> None:
    """Open, predict and, where there are labels, score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    started = time.perf_counter()
    trained = Trained.open(Run.open(Path(config.trained)))
    encoder = None
    if (trained.run.path / ENCODING).is_file():
        encoder = TabularEncoder.of(trained.run.read_json(ENCODING))
    cohort = _open(config, trained, encoder)
    with Meter() as meter:
        logits, total = _logits(config, trained, cohort, encoder, run)
    run.write_text(TABLE, _table(trained, logits).to_csv(index=False))
    if cohort.label is not None:
        _score(config, trained, cohort, logits, run)
    run.write_json(
        "cost.json",
        {
            "seconds": time.perf_counter() - started,
            "fit_seconds": 0.0,
            "feature_seconds": 0.0,
            "peak_memory_mb": meter.peak_memory_mb,
            "trainable": 0,
            "total": total,
            "trainable_share": 0.0,
            "steps": 0,
            "cached": False,
        },
    )


def _open(config: Config, trained: Trained, encoder: TabularEncoder | None) -> Cohort:
    """The new samples, read by the columns that the run read where none are named."""
    asked, own, data = config.columns, trained.config.columns, trained.run.provenance["data"]
    inputs = asked.inputs or own.inputs or data.get("inputs")
    # No label is guessed: a manifest in which all are of one class is as good as another here.
    given: dict[str, Any] = {
        "inputs": inputs if encoder is None else encoder.columns,
        "label": (),
        **asked.model_dump(include={"patient_id", "site", "date"}),
    }
    cohort = Cohort.open(config.data, **given)
    if asked.patient_id is None and own.patient_id in cohort.table:
        cohort = Cohort.open(config.data, **given | {"patient_id": own.patient_id})
    cohort = replace(cohort, label=trained.label_in(list(cohort.table.columns), asked))
    if cohort.fingerprint == data["fingerprint"]:
        tell("The run was trained on these very samples: its figures for them are no test.")
    return cohort


def _logits(
    config: Config, trained: Trained, cohort: Cohort, encoder: TabularEncoder | None, run: Run
) -> tuple[Array, int]:
    """Of every sample, and the number of parameters.

    Raises:
        WeightsError: If the network is not the one that the run stands on.
    """
    own = trained.config
    # A network with random weights is drawn again, as the run drew it.
    seed_everything(own.seed)
    backbone, inputs = network_for(
        cohort, encoder=encoder, backbone=own.backbone, pool=own.pool, config=own.input
    )
    weights = trained.run.provenance["weights"]
    if backbone.fingerprint != weights["fingerprint"]:
        raise WeightsError(
            f"'{backbone.spec}' is not the network that '{trained.run.path.name}' was trained on.",
            where=str(trained.run.path),
            expected=f"fingerprint {weights['fingerprint']}, here it is {backbone.fingerprint}",
        )
    run.update_provenance(
        data=describe(cohort),
        weights=weights_of(backbone),
        trained={"run": trained.run.path.name, "data": trained.run.provenance["data"]["name"]},
    )
    tuner = tuners.parse_tuner(own.tuner)
    if (trained.run.path / "adapter").is_dir():
        tuners.load(backbone, tuner, trained.run.path / "adapter")
    objective = Classifier(*_parts(trained, backbone), cast("TargetKind", trained.kind))
    logits = predict(
        objective, inputs, collate=Collate.of(backbone), batch_size=config.batch_size
    )["logits"]  # fmt: skip
    if own.head.kind == "knn":
        logits = logits_of(trained.kind, logits)
    return logits, count_parameters(objective)[1]


def _parts(trained: Trained, backbone: Backbone) -> tuple[nn.Module, nn.Module]:
    """Encoder and head."""
    state = load_file(trained.run.path / "head.safetensors")
    if isinstance(trained.config, probe.Config):
        chosen = probe.Choice(**trained.run.read_json("probe.json")["chosen"])
        levels = LevelEncoder(backbone, max(trained.config.probe.blocks))
        return levels, probe.restored(levels, chosen, state)
    return PooledEncoder(backbone), _heads.restored(trained.config.head, state)


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
