"""From events and cutoffs to what the network of a stay reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from galenic.core.errors import ConfigError, DataError
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.seeding import rng
from galenic.data.cohort import Cohort
from galenic.data.events.channels import Channels
from galenic.data.events.definitions import Definition
from galenic.data.events.definitions import load as load_definition
from galenic.data.events.series import Counts, Notes, Series, last_notes, windows
from galenic.data.events.staging import instants
from galenic.data.manifest import require_column
from galenic.data.tables import words
from galenic.pipeline.opening import describe
from galenic.tasks._stays_config import Config

Array = np.ndarray[Any, np.dtype[Any]]
# What was read, and by which channels.
SERIES = "series.json"


@dataclass(frozen=True, eq=False)
class Reading:
    """What is known of every stay before its cutoff.

    Attributes:
        series: By name of the modality.
        channels: What is measured, by name of the modality.
        notes: None where they are no modality.
        counts: How many events, notes and stays there are, and what was left out why.
    """

    series: dict[str, Series]
    channels: dict[str, Channels]
    notes: Notes | None
    counts: Counts


def reading(events: pl.DataFrame, cohort: Cohort, by: Array | Channels, config: Config) -> Reading:
    """Cut the windows of all stays.

    Args:
        events: The event table.
        cohort: The stays.
        by: Training stays, by which channels are chosen and scaled; or the channels of a finished
            run: then nothing is learnt, and no stay need have a note.
        config: Of the run.

    Raises:
        DataError: If stays and events do not fit, or a modality is nowhere, or units differ.
        ConfigError: If a code of the panel is no channel, or none is left.
    """
    asked = config.modalities
    found, counts = windows(events, cutoffs(cohort, config.timezone), config.series.window_hours)
    if counts["stays"] == counts["stays_of_unknown_patients"]:
        raise DataError(
            f"None of the {counts['stays']} stays is of a patient of the event table.",
            where=f"{cohort.name}, column 'patient_id'",
            expected="the patients as the event table names them",
        )
    series: dict[str, Series] = {}
    channels: dict[str, Channels] = {}
    if names := [name for name in asked if name != "notes"]:
        at = config.series
        if isinstance(by, Channels):
            by.require_units(found)
            every = by
        else:
            every = Channels.fit(found, by, names=at.channels, levels=at.levels, least=at.least)
        whole, left = every.series(found, len(cohort))
        counts |= left
        if at.keep < 1:
            whole = whole.thinned(at.keep, rng(config.seed, "keep"))
        for name in names:
            places = _places(every.names, at.panel, panel=name == "panel")
            channels[name], series[name] = every.of(places), whole.of(places)
    notes = None
    if "notes" in asked:
        notes, left = last_notes(found, len(cohort), config.series.notes)
        counts |= left
        if not isinstance(by, Channels):
            _require_notes(notes, counts)
        if lacking := counts["stays_without_notes"]:
            tell(f"{lacking} of {counts['stays']} stays have no note: they are kept.")
    return Reading(series, channels, notes, counts)


def record(run: Run, cohort: Cohort, found: Reading, events: str) -> None:
    """Write what was read: `series.json`, and the data in the provenance.

    Args:
        run: Where.
        cohort: The stays.
        found: What is known of them.
        events: Fingerprint of the event table.
    """
    states = {name: channels.state() for name, channels in found.channels.items()}
    run.write_json(SERIES, {"counts": found.counts, "channels": states})
    told = {"events": found.counts, "events_fingerprint": events}
    run.update_provenance(data=describe(cohort) | told)


def recorded(run: Run) -> dict[str, Channels]:
    """The channels of a finished run, by name of the modality."""
    states = run.read_json(SERIES)["channels"]
    return {name: Channels.from_state(state) for name, state in states.items()}


def definition(config: Config) -> Definition:
    """What makes the stays of a run that names no manifest.

    Raises:
        ConfigError: If there is no such preset or file, or a key is wrong.
    """
    asked = config.definition
    return load_definition(asked) if isinstance(asked, str) else asked


def _places(names: Sequence[str], codes: Sequence[str], *, panel: bool) -> list[int]:
    """Where the channels of the panel are, or the others."""
    if unknown := set(codes) - set(names):
        raise ConfigError(
            f"'{min(unknown)}' is no channel.",
            where="series.panel",
            expected=", ".join(names[:30]),
        )
    places = [at for at, name in enumerate(names) if (name in codes) == panel]
    if not places:
        raise ConfigError(
            "All channels are in the panel: none is left for the series.",
            where="series.panel",
            next_step="modalities=[panel]",
        )
    return places


def _require_notes(notes: Notes, counts: Counts) -> None:
    if not notes.texts:
        raise DataError(
            "No stay has a note in its window.",
            where=f"{counts['notes_before']} notes are earlier, {counts['notes_after']} later, "
            f"{counts['notes_untimed']} without a time",
            expected="events of source note",
            next_step="modalities=[series], or check cutoff and window",
        )


def cutoffs(cohort: Cohort, timezone: str) -> pl.DataFrame:
    """`patient_id` and `cutoff` of every stay.

    Args:
        cohort: The stays.
        timezone: Where clocks without a zone hang, those of the events too.

    Raises:
        DataError: If a column is not there, or a cutoff is no time.
    """
    for column in ("patient_id", "cutoff"):
        require_column(column, cohort.table.columns)
    given = cohort.table["cutoff"]
    # A number would be read as a year.
    text = given.where(given.isna()) if pd.api.types.is_numeric_dtype(given) else given
    written = pd.DataFrame(
        {"patient_id": cohort.table["patient_id"].astype(str), "cutoff": words(text)}
    )
    at = instants(pl.col("cutoff").cast(pl.String), timezone)
    table = pl.from_pandas(written).with_columns(cutoff=at)
    bad = table["cutoff"].is_null()
    if bad.any():
        raise DataError(
            f"{bad.sum()} stay(s) have no cutoff that is a time.",
            where=f"{cohort.name}, row {bad.arg_true()[0]}, column 'cutoff'",
            expected=f"2026-01-31T08:00:00Z; without a zone it is the clock of {timezone}",
        )
    return table
