"""Classes of other samples from several inputs, some of which may be missing."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from safetensors.torch import load_file
from torch import nn

from galenic import tuners
from galenic.core.config import parse
from galenic.core.errors import DataError
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.data.cohort import Cohort
from galenic.data.tabular import TabularEncoder
from galenic.models.lego import store
from galenic.objectives.classification import Classifier, TargetKind
from galenic.pipeline.lego import Modality, encodings, open_modalities, presence, split_inputs
from galenic.pipeline.paired import Concatenated, Fed, PairedCollate, PairedRows
from galenic.tasks import _lego_config, lego
from galenic.tasks._lego_arms import late_logits
from galenic.tasks._predict_config import Config
from galenic.tasks._predict_opening import cohort_of, note_origin, require_network
from galenic.tasks._predict_results import Trained, tell_of

Array = np.ndarray[Any, np.dtype[Any]]


def apply(config: Config, finished: Run, run: Run) -> int:
    """Predict and, where there are labels, score; gives the number of parameters.

    Args:
        config: What was asked.
        finished: The run that was trained.
        run: Where it goes.
    """
    own = parse(_lego_config.Config, finished.config, str(finished.path))
    trained = Trained.open(finished)
    tables = encodings(finished)
    pictures = [n for n, kind in finished.provenance["data"]["inputs"].items() if kind != "table"]
    inputs = [*pictures, *(column for table in tables.values() for column in table.columns)]
    columns = own.columns.model_copy(update={"inputs": inputs})
    cohort = cohort_of(config, finished, columns, trained.kind, trained.classes)
    modalities = _opened(own, finished, cohort, tables, run)
    size = config.batch_size or own.schedule.eval_batch_size
    models = _models(own, finished, trained, modalities)
    rows = np.arange(len(cohort))
    told = []
    for model, used in models:
        here = rows[np.any([modality.present for modality in used], axis=0)]
        names = [modality.name for modality in used]
        objective = Classifier(Fed(model, names), nn.Identity(), cast("TargetKind", trained.kind))
        data = PairedRows(used, here, np.zeros(len(cohort)))
        outputs = predict(objective, data, collate=PairedCollate(used), batch_size=size)
        told.append((here, outputs["logits"]))
    logits = told[0][1] if len(told) == 1 else late_logits(trained.kind, rows, told)
    tell_of(config, trained, cohort, logits, run)
    return sum(count_parameters(model)[1] for model, _ in models)


def _opened(
    own: _lego_config.Config,
    finished: Run,
    cohort: Cohort,
    tables: dict[str, TabularEncoder],
    run: Run,
) -> list[Modality]:
    """The inputs of the new samples, and the networks that the run stands on."""
    note_origin(finished, cohort, run)
    for name, part in split_inputs(cohort, own.tables).items():
        if not presence(part).any():
            raise DataError(
                f"No sample has '{name}'.",
                where=cohort.name,
                expected="at least one that does, for its network is opened by it",
                next_step="Add one, and leave its prediction out.",
            )
    rows = np.arange(len(cohort))
    # A network with random weights is drawn again, as the run drew it.
    seed_everything(own.seed)
    found = open_modalities(
        cohort,
        rows,
        run,
        backbone=own.backbone,
        backbones=own.backbones,
        tables=own.tables,
        pool=own.pool,
        config=own.input,
        configs=own.inputs,
        used=rows,
        seed=own.seed,
        encoders=tables,
    )
    require_network(finished, run.provenance["weights"])
    return found


def _models(
    own: _lego_config.Config, finished: Run, trained: Trained, modalities: list[Modality]
) -> list[tuple[nn.Module, list[Modality]]]:
    """What predicts in the run, and the inputs that it reads; of late fusion, every block.

    Raises:
        DataError: If one input alone predicts, and a sample lacks it.
    """
    tuner, folder = tuners.parse_tuner(own.tuner), finished.path
    encoders = {modality.name: lego.encoder_of(modality, tuner) for modality in modalities}
    name = finished.read_json("lego.json")["predicts"]
    if name == "concat":
        model = Concatenated(encoders, trained.outputs)
        model.load_state_dict(load_file(folder / lego.HEAD), strict=False)
        return [(model, modalities)]
    if name == "merged":
        return [(store.load(folder / lego.MERGED, encoders), modalities)]
    if name == "fused":
        return [(store.load(folder / lego.FUSED, encoders), modalities)]
    found: list[tuple[nn.Module, list[Modality]]] = []
    for modality in modalities:
        if name not in ("late", modality.name):
            continue
        if name != "late" and not modality.present.all():
            raise DataError(
                f"{int((~modality.present).sum())} samples lack '{name}', by which "
                f"'{finished.path.name}' predicts.",
                expected="it in every row",
                next_step="Leave these rows out.",
            )
        block = store.load_block(folder / lego.MERGED, modality.name, encoders[modality.name])
        found.append((block, [modality]))
    return found
