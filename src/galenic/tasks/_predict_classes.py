"""Classes, grades, findings and measurements of other samples."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from safetensors.torch import load_file
from torch import nn

from galenic.core.config import parse
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.data.tabular import TabularEncoder
from galenic.models.backbone import Backbone
from galenic.objectives.classification import Classifier, TargetKind
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.inputs import Collate
from galenic.pipeline.levels import LevelEncoder
from galenic.pipeline.opening import ENCODING
from galenic.pipeline.votes import logits_of
from galenic.tasks import _classify_config, _heads, probe
from galenic.tasks._predict_config import Config
from galenic.tasks._predict_opening import cohort_of, label_in, network_of
from galenic.tasks._predict_results import Trained, tell_of


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
    kind = probe.Config if finished.provenance["task"] == "probe" else _classify_config.Config
    own = parse(kind, finished.config, str(finished.path))
    cohort = cohort_of(config, finished, own.columns, encoder)
    columns = list(cohort.table.columns)
    spec = label_in(columns, config.columns, own.columns, trained.kind, trained.classes)
    cohort = replace(cohort, label=spec)
    backbone, inputs = network_of(finished, own, cohort, run, encoder)
    parts = _parts(finished, own, backbone)
    objective = Classifier(*parts, cast("TargetKind", trained.kind))
    size = config.batch_size or own.schedule.eval_batch_size
    logits = predict(objective, inputs, collate=Collate.of(backbone), batch_size=size)["logits"]
    if own.head.kind == "knn":
        logits = logits_of(trained.kind, logits)
    tell_of(config, trained, cohort, logits, run)
    return count_parameters(objective)[1]


def _parts(
    finished: Run, own: _classify_config.Config, backbone: Backbone
) -> tuple[nn.Module, nn.Module]:
    """Encoder and head on the network of the run."""
    state = load_file(finished.path / "head.safetensors")
    if isinstance(own, probe.Config):
        chosen = probe.Choice(**finished.read_json("probe.json")["chosen"])
        levels = LevelEncoder(backbone, max(own.probe.blocks))
        return levels, probe.restored(levels, chosen, state)
    return PooledEncoder(backbone), _heads.restored(own.head, state)
