"""Whom training draws how often: every class, or every site, in equal share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from galenic.core.errors import ConfigError
from galenic.data.cohort import Cohort

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Balance:
    """How training samples are drawn; the default is each of them once.

    Attributes:
        weights: Relative chance of each sample.
        groups: Group of each sample; every batch holds all groups in equal share.
    """

    weights: Array | None = None
    groups: Array | None = None


def balance_of(how: bool | Literal["site"], cohort: Cohort, rows: Array, targets: Array) -> Balance:
    """What `schedule.balance` asks for.

    Sites stand side by side in every batch, as domains do in the literature on domain
    generalisation (Gulrajani and Lopez-Paz, ICLR 2021: one minibatch a domain).

    Args:
        how: `schedule.balance`.
        cohort: Knows the kind of label, and the sites.
        rows: Training samples [n].
        targets: Of the training samples [n, ...].

    Raises:
        ConfigError: If there are no classes or no sites to draw by.
    """
    if how == "site":
        return Balance(groups=_sites(cohort, rows))
    if not how:
        return Balance()
    kind = "no" if cohort.label is None else cohort.label.kind
    if cohort.label is None or kind in ("multilabel", "continuous", "mask"):
        raise ConfigError(
            f"schedule.balance draws classes equally often; a {kind} label has none.",
            next_step="schedule.balance=false",
        )
    counts = np.bincount(targets, minlength=len(cohort.label.classes))
    return Balance(weights=1.0 / counts[targets])


def _sites(cohort: Cohort, rows: Array) -> Array:
    column = cohort.site_column
    if column is None:
        raise ConfigError(
            "schedule.balance=site draws sites equally often; the cohort has no column of them.",
            next_step="--site COLUMN",
        )
    sites: Array = cohort.table[column].iloc[rows].astype(str).to_numpy()
    return sites
