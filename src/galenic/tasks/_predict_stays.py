"""Outcomes of other stays, read from other events by the channels of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import polars as pl
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.fingerprint import fingerprint_bytes
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.data.cohort import Cohort
from galenic.data.events import label, read
from galenic.data.events.channels import Channels
from galenic.data.events.grid import summaries
from galenic.data.events.ingest import REPORT
from galenic.models.backbone import Backbone
from galenic.models.irregular import ResidualHead
from galenic.models.trees import Forest, TreesHead
from galenic.objectives.classification import Classifier, TargetKind
from galenic.pipeline.opening import weights_of
from galenic.pipeline.stays import StayCollate
from galenic.tasks import _stays_config, _stays_parts
from galenic.tasks._predict_config import Config
from galenic.tasks._predict_opening import cohort_of, note_origin, restore
from galenic.tasks._predict_results import Trained, tell_of
from galenic.tasks._stays_reading import Reading, definition, reading, record, recorded

Array = np.ndarray[Any, np.dtype[Any]]
# Channels that a message lists.
SHOWN = 30


def apply(config: Config, finished: Run, run: Run) -> int:
    """Predict and, where there are labels, score; gives the number of parameters.

    Args:
        config: What was asked.
        finished: The run that was trained.
        run: Where it goes.
    """
    own = parse(_stays_config.Config, finished.config, str(finished.path))
    # Cutoffs hang on the clock of the events.
    own = own.model_copy(update=config.reading(own.mapping, own.timezone))
    trained, channels = Trained.open(finished), recorded(finished)
    events = _events(config, own, run)
    _require_known(events, own, channels, Path(config.data).name)
    cohort = _cohort(config, own, trained, events)
    found = reading(events, cohort, Channels.joined(list(channels.values())), own)
    record(run, cohort, found, fingerprint_bytes(events.write_csv()))
    note_origin(finished, cohort, run)
    text = None if found.notes is None else _text(finished, own, run)
    objective = _objective(trained, own, channels, text)
    logits = predict(
        objective,
        _samples(own, found, text),
        collate=StayCollate(text),
        batch_size=config.batch_size or own.schedule.eval_batch_size,
    )["logits"]
    tell_of(config, trained, cohort, logits, run)
    return count_parameters(objective)[1]


def _events(config: Config, own: _stays_config.Config, run: Run) -> pl.DataFrame:
    """The new event table; what the reader left out is written."""
    events = read(config.data, mapping=own.mapping, timezone=own.timezone)
    run.write_text(REPORT, events.rejected.write_csv())
    return events.frame


def _require_known(
    events: pl.DataFrame, own: _stays_config.Config, channels: Mapping[str, Channels], name: str
) -> None:
    """Check that the events hold something that the run reads, and say what of it they lack.

    Raises:
        DataError: If none of its channels is there or, where it reads notes alone, no note.
    """
    known = [code for one in channels.values() for code in one.names]
    here = set(events["code"].unique())
    lacking = [code for code in known if code not in here]
    if known and len(lacking) == len(known):
        raise DataError(
            "The new events hold none of the channels that the run reads.",
            where=f"{name}, codes of its events",
            expected=", ".join(known[:SHOWN]),
            next_step="Give the codes the names that they had in training, by --mapping for tables.",
        )
    if lacking:
        tell(
            f"{len(lacking)} of the {len(known)} channels that the run reads are not in the new "
            f"events, as if never measured: {', '.join(lacking[:SHOWN])}."
        )
    if not known and not (events["source"] == "note").any():
        raise DataError(
            "The new events hold no note, and the run reads notes alone.",
            where=name,
            expected="events of source note",
        )


def _cohort(
    config: Config, own: _stays_config.Config, trained: Trained, events: pl.DataFrame
) -> Cohort:
    """The stays: of the manifest that was named, or as the run's definition makes them.

    Raises:
        ConfigError: If the run itself read a manifest, and none was named.
        DataError: If the definition finds no stay.
    """
    table: str | pd.DataFrame
    if config.stays is not None:
        table = config.stays
    elif own.stays is not None:
        raise ConfigError(
            f"'{trained.run.path.name}' read its stays from a manifest: no definition makes new ones.",
            where="stays",
            expected="a manifest of the new stays, with the columns patient_id and cutoff",
            next_step="--stays stays.csv",
        )
    else:
        rule = definition(own)
        table = label(events, rule).to_pandas()
        if table.empty:
            raise DataError(
                f"By the definition '{rule.name}' no stay of the new events can be predicted.",
                where=Path(config.data).name,
                expected="stays whose cutoff and outcome are known",
                next_step="For stays that go on: --stays with patient_id and cutoff.",
            )
    columns = own.columns.model_copy(update={"inputs": ["cutoff"]})
    return cohort_of(config, trained.run, columns, trained.kind, trained.classes, source=table)


def _text(finished: Run, own: _stays_config.Config, run: Run) -> Backbone:
    """The text network, as the run left it."""
    # A network with random weights is drawn again, as the run drew it.
    seed_everything(own.seed)
    text = _stays_parts.open_text(own)
    run.update_provenance(weights=weights_of(text))
    restore(text, finished, own)
    return text


def _objective(
    trained: Trained,
    own: _stays_config.Config,
    channels: Mapping[str, Channels],
    text: Backbone | None,
) -> Classifier:
    """Network and head, as the run left them."""
    folder = trained.run.path
    network = _stays_parts.network(own, channels, text)
    network.load_state_dict(load_file(folder / _stays_parts.NETWORK))
    head = _head(own, load_file(folder / "head.safetensors"))
    encoder = _stays_parts.encoder(own, network, text)
    return Classifier(encoder, head, cast("TargetKind", trained.kind))


def _head(own: _stays_config.Config, state: Mapping[str, Tensor]) -> nn.Module:
    if own.network.kind == "trees":
        return TreesHead(Forest(**state))
    outputs, width = state["linear.weight"].shape
    head = ResidualHead(width, outputs, own.network.dropout)
    head.load_state_dict(dict(state))
    return head


def _samples(own: _stays_config.Config, found: Reading, text: Backbone | None) -> Dataset[Any]:
    """What the network reads of each stay; for trees one row of summaries."""
    if own.network.kind == "trees":
        rows = summaries(found.series["series"])
        return cast("Dataset[Any]", [{"features": row} for row in rows])
    return _stays_parts.samples(own, found, text)
