"""What predicting needs of a finished run: its columns on new samples, and its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd

from galenic import tuners
from galenic.core.errors import WeightsError
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.data.cohort import Cohort
from galenic.data.labels import LabelSpec
from galenic.data.manifest import column_for, require_column
from galenic.data.tabular import TabularEncoder
from galenic.models.backbone import Backbone
from galenic.pipeline.config import Columns, InputConfig
from galenic.pipeline.inputs import Inputs
from galenic.pipeline.opening import Opener, open_inputs, weights_of
from galenic.tasks._predict_config import Config

# Puts what a run trained, with that run and its config, into the network that it stands on.
Put = Callable[[Backbone, Run, Any], None]


class Printed(Protocol):
    """Data that have a fingerprint."""

    @property
    def fingerprint(self) -> str: ...


class Told(Protocol):
    """What every task that trains on a cohort is told."""

    @property
    def columns(self) -> Columns: ...
    @property
    def backbone(self) -> str: ...
    @property
    def input(self) -> InputConfig: ...
    @property
    def tuner(self) -> dict[str, Any]: ...
    @property
    def seed(self) -> int: ...


def cohort_of(
    config: Config,
    trained: Run,
    columns: Columns,
    kind: str,
    classes: Sequence[str],
    encoder: TabularEncoder | None = None,
    source: str | pd.DataFrame | None = None,
) -> Cohort:
    """The new samples, read by the columns that the run read where none are named.

    Args:
        config: What was asked.
        trained: The finished run.
        columns: Its own.
        kind: Of its label.
        classes: Of its label, in the order of the logits.
        encoder: Its own, of a table.
        source: Where the new samples are listed; None for `config.data`.

    Returns:
        All of them; the label is None where the manifest does not hold what is predicted.

    Raises:
        DataError: If a column that was asked for is not there.
    """
    source = config.data if source is None else source
    asked, known = config.columns, trained.provenance["data"].get("inputs")
    given: dict[str, Any] = {
        "inputs": (asked.inputs or columns.inputs or known) if encoder is None else encoder.columns,
        # Not guessed: a manifest in which all are of one class is as good as another here.
        "label": (),
        **asked.model_dump(include={"patient_id", "site", "date"}),
    }
    cohort = Cohort.open(source, **given)
    if asked.patient_id is None and columns.patient_id in cohort.table:
        cohort = Cohort.open(source, **given | {"patient_id": columns.patient_id})
    _tell_of_patients(cohort, trained)
    return replace(
        cohort, label=_label_in(list(cohort.table.columns), asked, columns, kind, classes)
    )


def _tell_of_patients(cohort: Cohort, trained: Run) -> None:
    """Say where rows are taken for patients, and the run knew the difference."""
    data = trained.provenance["data"]
    if cohort.patient_column is None and data.get("patients", 0) < data.get("n", 0):
        tell(
            "The new manifest has no patient column, and the run had several samples a patient: "
            "each row counts as a patient of its own, and intervals are too narrow if it is not. "
            "--patient-id COLUMN names it."
        )


def _label_in(
    table: Sequence[str], asked: Columns, columns: Columns, kind: str, classes: Sequence[str]
) -> LabelSpec | None:
    """Where a new manifest holds what is predicted; None where it does not."""
    own = asked.label or columns.label or column_for("label", None, table)
    if own is None:
        return None
    names = (own,) if isinstance(own, str) else tuple(own)
    if asked.label is not None:
        for name in names:
            require_column(name, table)
    if not set(names) <= set(table):
        return None
    return LabelSpec(cast("Any", kind), names, tuple(classes))


def note_origin(trained: Run, data: Printed, run: Run) -> None:
    """Write whose prediction it is, and say so where it is of what the run was trained on."""
    if data.fingerprint == trained.provenance["data"]["fingerprint"]:
        tell("The run was trained on these very samples: its figures for them are no test.")
    origin = {"run": trained.path.name, "data": trained.provenance["data"]["name"]}
    run.update_provenance(trained=origin)


def put_tuned(backbone: Backbone, trained: Run, told: Told) -> None:
    """Put what the tuner of a run trained, if anything, into the network that it stands on."""
    if (trained.path / "adapter").is_dir():
        tuners.load(backbone, tuners.parse_tuner(told.tuner), trained.path / "adapter")


def network_of(
    trained: Run,
    told: Told,
    cohort: Cohort,
    run: Run,
    opener: Opener = open_inputs,
    put: Put = put_tuned,
) -> tuple[Backbone, Inputs]:
    """The network as the run left it, and the new samples as it reads them.

    Args:
        trained: The finished run.
        told: Its config.
        cohort: The new samples.
        run: Gets data and weights in its provenance.
        opener: Opens the network and what it reads.
        put: As for :func:`restore`.

    Raises:
        WeightsError: If the network is not the one that the run stands on.
    """
    note_origin(trained, cohort, run)
    # A network with random weights is drawn again, as the run drew it.
    seed_everything(told.seed)
    backbone, inputs = opener(
        cohort,
        np.arange(len(cohort)),
        run,
        backbone=told.backbone,
        pool=getattr(told, "pool", "auto"),
        config=told.input,
    )
    restore(backbone, trained, told, put)
    return backbone, inputs


def restore(backbone: Backbone, trained: Run, told: Told, put: Put = put_tuned) -> None:
    """Put what a run trained into the network that it stands on.

    Args:
        backbone: As it is without the run.
        trained: The finished run.
        told: Its config.
        put: How.

    Raises:
        WeightsError: If it is another network.
    """
    require_network(trained, weights_of(backbone))
    put(backbone, trained, told)


def require_network(trained: Run, weights: Mapping[str, str]) -> None:
    """Check that a run stands on the network that was opened, of which `weights` tells.

    Raises:
        WeightsError: If it is another network.
    """
    known, here = trained.provenance["weights"]["fingerprint"], weights["fingerprint"]
    if here != known:
        raise WeightsError(
            f"'{weights['backbone']}' is not the network that '{trained.path.name}' was trained on.",
            where=str(trained.path),
            expected=f"fingerprint {known}, here it is {here}",
        )
