"""What every task that reads a cohort can be told."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator

from galenic.core.config import Config
from galenic.core.inputs import EcgSpec
from galenic.core.progress import tell
from galenic.data.augment import AugmentConfig
from galenic.data.cohort import Cohort
from galenic.data.labels import LabelKind

Array = np.ndarray[Any, np.dtype[Any]]

DEFAULT_BACKBONES = {
    "text": "builtin:minilm",
    "image": "builtin:efficientnet-lite0",
    "volume": "builtin:efficientnet-lite0",
    "ecg": "builtin:efficientnet-lite0",
    "audio": "builtin:efficientnet-lite0",
    "table": "builtin:table",
}
QUICK_ROWS = 96


class Columns(Config):
    """Which columns of the manifest play which part; None for a guess from name and values."""

    inputs: list[str] | None = None
    label: str | list[str] | None = None
    kind: LabelKind | None = None
    patient_id: str | None = None
    site: str | None = None
    date: str | None = None
    split: str | None = None


class EcgConfig(Config):
    """How tracings are read."""

    leads: list[str] = Field(
        [], description="By name, in this order; []: the network's own, or all."
    )
    faults: Literal["refuse", "mask"] = Field(
        "refuse", description="mask: a lead that is missing, flat or clipped becomes zeros."
    )
    mains_hz: float = Field(50.0, gt=0, description="Of the power line: 50 or 60.")

    def spec(self) -> EcgSpec:
        """As networks are told."""
        return EcgSpec(tuple(self.leads), None, self.faults, self.mains_hz)


class InputConfig(Config):
    """What the backbone is given."""

    size: int | list[int] | None = Field(
        None, description="Pixels (H = W) or [H, W], samples of a signal; None: the backbone's own."
    )
    channels: PositiveInt | None = Field(
        None, description="None: as many as the backbone was trained on."
    )
    max_length: PositiveInt | None = Field(
        None, description="Tokens of a text; None: the backbone's own."
    )
    augment: AugmentConfig | None = Field(None, description="None draws nothing.")
    ecg: EcgConfig | None = Field(None, description="Of tracings; None as the network has it.")

    @field_validator("size")
    @classmethod
    def _something_to_see(cls, value: int | list[int] | None) -> int | list[int] | None:
        sides = value if isinstance(value, list) else [1 if value is None else value]
        if not sides or min(sides) < 1:
            raise ValueError("every side is 1 or more")
        return value

    @property
    def sides(self) -> int | tuple[int, ...] | None:
        """The size as networks take it."""
        return tuple(self.size) if isinstance(self.size, list) else self.size


def open_cohort(data: str, columns: Columns, *, quick: bool = False) -> Cohort:
    """The cohort a task is told of; `quick` keeps about 96 rows of its commonest classes."""
    cohort = Cohort.open(data, **columns.model_dump())
    for note in cohort.notes:
        tell(note)
    if quick and len(cohort) > QUICK_ROWS:
        cohort = cohort.subset(_spread(cohort, QUICK_ROWS))
    return cohort


def _spread(cohort: Cohort, count: int) -> Array:
    """About `count` rows of the commonest classes, whole classes together."""
    if cohort.label is None or cohort.label.kind in ("multilabel", "continuous"):
        return np.arange(count)
    targets = cohort.targets()
    values, counts = np.unique(targets[targets >= 0], return_counts=True)
    common = values[np.argsort(-counts, kind="stable")[:4]]
    each = count // len(common)
    chosen = [np.flatnonzero(targets == value)[:each] for value in common]
    return np.sort(np.concatenate(chosen))
