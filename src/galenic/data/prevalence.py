"""Parts of a cohort brought to a wished share of normal ones, by leaving samples out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from galenic.core.config import Config
from galenic.core.errors import DataError
from galenic.core.seeding import rng
from galenic.data.splits import PARTS, Splits

Array = np.ndarray[Any, np.dtype[Any]]
Unit = Literal["patient", "slice", "both"]


class PrevalenceConfig(Config):
    """Normal ones to one with a finding, part by part; None leaves a part as it is."""

    train: float | None = Field(None, gt=0)
    val: float | None = Field(None, gt=0)
    test: float | None = Field(None, gt=0)
    unit: Unit = Field(
        "patient",
        description="What is counted; both: first patients, then the slices of those that are "
        "left. A patient with a finding is one with a slice that has one.",
    )


def make_prevalence_split(
    splits: Splits, patients: Array, positive: Array, config: PrevalenceConfig, seed: int
) -> Splits:
    """Leave out rows until each part has its ratio, as near as whole numbers allow.

    Nothing is ever repeated or moved to another part. Patients go as a whole; where slices are
    counted, a patient loses slices, but keeps one, with a finding if there was one.

    Args:
        splits: Of whole patients.
        patients: Patient of each row of the cohort [n].
        positive: Whether a row has a finding [n].
        config: The ratios.
        seed: Of the choice; the same seed, the same rows.

    Raises:
        DataError: If a part has too few of one kind for its ratio.
    """
    found = {}
    for part in PARTS:
        rows, ratio = getattr(splits, part), getattr(config, part)
        if ratio is not None:
            if config.unit != "slice":
                rows = _by_patient(rows, patients, positive, ratio, seed, part)
            if config.unit != "patient":
                rows = _by_slice(rows, patients, positive, ratio, seed, part)
        found[part] = rows
    return replace(splits, **found)


def counts_of(rows: Array, patients: Array, positive: Array) -> dict[str, int]:
    """Patients and slices of some rows, with and without a finding."""
    ill = np.unique(patients[rows][positive[rows]])
    slices = int(positive[rows].sum())
    return {
        "patients_with": len(ill),
        "patients_without": len(np.unique(patients[rows])) - len(ill),
        "slices_with": slices,
        "slices_without": len(rows) - slices,
    }


def _by_patient(
    rows: Array, patients: Array, positive: Array, ratio: float, seed: int, part: str
) -> Array:
    ill = np.unique(patients[rows][positive[rows]])
    well = np.setdiff1d(patients[rows], ill)
    some, others = _numbers(len(ill), len(well), ratio, "patients", part)
    draw = rng(seed, "prevalence", part, "patient")
    kept = np.concatenate([draw.permutation(ill)[:some], draw.permutation(well)[:others]])
    return rows[np.isin(patients[rows], kept)]


def _by_slice(
    rows: Array, patients: Array, positive: Array, ratio: float, seed: int, part: str
) -> Array:
    with_one, without = rows[positive[rows]], rows[~positive[rows]]
    some, others = _numbers(len(with_one), len(without), ratio, "slices", part)
    ill = np.unique(patients[with_one])
    well = np.setdiff1d(patients[without], ill)
    if some < len(ill) or others < len(well):
        raise DataError(
            f"The {part} part would keep {some} slices with a finding of {len(ill)} patients, and "
            f"{others} of {len(well)} patients without.",
            expected="a slice of each patient",
            next_step=f"Take another prevalence.{part}, or count patients: prevalence.unit=patient",
        )
    draw = rng(seed, "prevalence", part, "slice")
    kept = [_some(draw.permutation(with_one), patients, some, ill)]
    kept.append(_some(draw.permutation(without), patients, others, well))
    return np.sort(np.concatenate(kept))


def _some(rows: Array, patients: Array, count: int, must: Array) -> Array:
    """The first `count` rows, but one of each patient in `must` before all others."""
    _, first = np.unique(patients[rows], return_index=True)
    later = np.ones(len(rows), bool)
    later[first[np.isin(patients[rows[first]], must)]] = False
    return rows[np.argsort(later, kind="stable")][:count]


def _numbers(ill: int, well: int, ratio: float, what: str, part: str) -> tuple[int, int]:
    """How many with and without a finding stay: as many as the ratio allows."""
    some = min(ill, int(well / ratio + 1e-9))
    if some < 1:
        raise DataError(
            f"The {part} part has {ill} {what} with a finding and {well} without: too few for "
            f"{ratio:g} to 1.",
            expected=f"at least 1 with and {int(np.ceil(ratio))} without",
            next_step=f"Leave prevalence.{part} out, or add patients.",
        )
    return some, min(well, round(some * ratio))
