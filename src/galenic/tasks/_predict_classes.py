"""Classes, grades, findings and measurements of other samples."""

from __future__ import annotations

from functools import partial
from typing import cast

from galenic.core.config import parse
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.data.tabular import TabularEncoder
from galenic.objectives.classification import TargetKind
from galenic.pipeline.inputs import Collate
from galenic.pipeline.opening import ENCODING
from galenic.pipeline.votes import logits_of
from galenic.tasks._predict_config import Config
from galenic.tasks._predict_opening import cohort_of, network_of
from galenic.tasks._predict_parts import PARTS
from galenic.tasks._predict_results import Trained, tell_of


def apply(config: Config, finished: Run, run: Run) -> int:
    """Predict and, where there are labels, score; gives the number of parameters.

    Args:
        config: What was asked.
        finished: The run that was trained.
        run: Where it goes.
    """
    parts, trained, encoder = PARTS[finished.provenance["task"]], Trained.open(finished), None
    own = parse(parts.config, finished.config, str(finished.path))
    opener = parts.opener(own, finished)
    if (finished.path / ENCODING).is_file():
        encoder = TabularEncoder.of(finished.read_json(ENCODING))
        opener = partial(opener, encoder=encoder)
    cohort = cohort_of(config, finished, own.columns, trained.kind, trained.classes, encoder)
    backbone, inputs = network_of(finished, own, cohort, run, opener, parts.put)
    objective = parts.objective(finished, own, backbone, cast("TargetKind", trained.kind))
    size = config.batch_size or own.schedule.eval_batch_size
    logits = predict(objective, inputs, collate=Collate.of(backbone), batch_size=size)["logits"]
    if own.head.kind == "knn":
        logits = logits_of(trained.kind, logits)
    tell_of(config, trained, cohort, logits, run)
    return count_parameters(objective)[1]
