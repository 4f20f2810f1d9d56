"""What a sample module builds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from galenic.data.labels import LabelKind


@dataclass(frozen=True)
class SampleCohort:
    """A small real cohort from an installed package.

    Attributes:
        table: One row a sample.
        inputs: Input columns.
        label: Label column.
        title: One line for people.
        license: Terms of the data.
        patient_id: Column of the unit that must not be split; None for each row its own.
        kind: Kind of the label; None to infer it.
        root: What paths are relative to.
    """

    table: pd.DataFrame
    inputs: list[str]
    label: str
    title: str
    license: str
    patient_id: str | None = None
    kind: LabelKind | None = None
    root: Path | None = None


def samples_folder() -> Path:
    """Where samples that are written once are kept."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "galenic" / "samples"
