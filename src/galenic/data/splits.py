"""Parts of a cohort that share no patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from galenic.core.config import Config
from galenic.core.errors import ConfigError, DataError
from galenic.core.seeding import rng
from galenic.data.cohort import Cohort
from galenic.data.labels import LabelSpec, missing
from galenic.data.manifest import parts_said
from galenic.data.tables import words

Array = np.ndarray[Any, np.dtype[Any]]
PARTS = ("train", "val", "test")
BINS = 10
ACCEPT = "sample, patients may repeat across splits"


class SplitConfig(Config):
    """How a cohort is divided."""

    how: Literal[
        "auto", "stratified", "kfold", "few_shot", "leave_site_out", "by_date", "given"
    ] = Field("auto", description="auto: given where the manifest has a split column.")
    by: Literal["patient", "sample, patients may repeat across splits"] = "patient"
    val: float = Field(0.15, gt=0, lt=1, description="Share of the patients.")
    test: float = Field(0.2, gt=0, lt=1, description="Share of the patients.")
    folds: int = Field(5, ge=2, description="For kfold.")
    fold: int = Field(0, ge=0, description="The fold that is the test part.")
    shots: int = Field(5, ge=1, description="Patients a class in training, for few_shot.")
    site: str | None = Field(
        None, coerce_numbers_to_str=True, description="The site that is the test part."
    )
    date: str | None = Field(None, description="First day of the test part; None: by share.")


@dataclass(frozen=True)
class Splits:
    """Row numbers of each part, ascending int64."""

    train: Array
    val: Array
    test: Array

    def to_dict(self, how: str, seed: int) -> dict[str, Any]:
        """For `splits.json`: how they were made, counts, and the rows of each part."""
        parts = {part: getattr(self, part).tolist() for part in PARTS}
        counts = {part: len(rows) for part, rows in parts.items()}
        return {"how": how, "seed": seed, "counts": counts, **parts}

    def shuffled(self, rows: int, seed: int) -> Array:
        """Row whose label each of all `rows` is taught in a control; those of test keep their own.

        Rows of training and validation are drawn among each other.
        """
        source = np.arange(rows)
        known = np.concatenate([self.train, self.val])
        source[known] = np.random.default_rng([seed, 1]).permutation(known)
        return source


def make_splits(cohort: Cohort, config: SplitConfig, seed: int) -> Splits:
    """Divide a cohort; rows without any label belong to no part, unless no row has one.

    Raises:
        DataError: If a patient would stand in two parts, or a part would be empty.
        ConfigError: If the config asks for what the cohort cannot give.
    """
    how = _how(cohort, config)
    labelled, strata = _labelled(cohort)
    groups = cohort.patient_ids[labelled]
    if config.by == ACCEPT:
        groups = np.arange(len(labelled))
    if how == "given":
        parts = _given(cohort)[labelled]
    elif how == "leave_site_out":
        parts = _site_out(cohort, labelled, groups, strata, config, seed)
    elif how == "by_date":
        parts = _by_date(cohort, labelled, groups, config)
    elif how == "kfold":
        parts = _kfold(groups, strata, config, seed)
    else:
        parts = _shares(groups, strata, {"test": config.test, "val": config.val}, seed)
        if how == "few_shot":
            parts = _few_shot(parts, groups, strata, config.shots, seed)
    splits = Splits(*(labelled[parts == part].astype(np.int64) for part in PARTS))
    for part in PARTS:
        if not len(getattr(splits, part)):
            raise DataError(
                f"The {part} part is empty: {len(np.unique(groups))} patients in all.",
                where=cohort.name,
                next_step="Add patients, or change split.val and split.test.",
            )
    if config.by != ACCEPT:
        require_apart(cohort, splits)
    return splits


def with_unlabelled(cohort: Cohort, config: SplitConfig, splits: Splits) -> Splits:
    """The same parts, and in training also the rows of no part that could have stood there.

    Those are rows without a label, and what `few_shot` leaves out. None joins of a patient who
    has a row in validation or test, or one that a label would have kept out of training.

    Args:
        cohort: That was divided.
        config: How it was.
        splits: What came of it.
    """
    barred = ~_may_train(cohort, config, splits)
    barred[np.concatenate([splits.val, splits.test])] = True
    joined = np.flatnonzero(~np.isin(cohort.patient_ids, cohort.patient_ids[barred]))
    train = np.union1d(splits.train, joined).astype(np.int64)
    return Splits(train, splits.val, splits.test)


def _may_train(cohort: Cohort, config: SplitConfig, splits: Splits) -> Array:
    """Whether each row is of the kind that stands in training, with a label or without."""
    how = _how(cohort, config)
    if how == "given":
        return parts_said(cohort.table[cohort.split_column]).isin(["train", ""]).to_numpy()
    if how == "leave_site_out":
        sites = cohort.sites
        return (sites.notna() & (sites != sites.iloc[splits.test[0]])).to_numpy(dtype=bool)
    if how == "by_date":
        dates = _dates(cohort.table[cohort.date_column])
        held = np.concatenate([splits.val, splits.test])
        groups = held if config.by == ACCEPT else cohort.patient_ids[held]
        return (dates < dates.iloc[held].groupby(groups).max().min()).to_numpy()
    return np.ones(len(cohort), dtype=bool)


def _how(cohort: Cohort, config: SplitConfig) -> str:
    if config.how == "auto":
        return "given" if cohort.split_column else "stratified"
    return config.how


def _labelled(cohort: Cohort) -> tuple[Array, Array]:
    """Rows with a label, and the stratum of each; all rows where the cohort has none."""
    if cohort.label is None:
        return np.arange(len(cohort)), np.zeros(len(cohort), dtype=np.int64)
    targets = cohort.targets()
    rows = np.flatnonzero(~missing(targets))
    return rows, strata_of(cohort.label, targets[rows])


def require_apart(cohort: Cohort, splits: Splits) -> None:
    """Check that no patient stands in two parts.

    Raises:
        DataError: With the number of such patients and some rows; never an identifier.
    """
    part = np.full(len(cohort), -1)
    for code, name in enumerate(PARTS):
        part[getattr(splits, name)] = code
    used = np.flatnonzero(part >= 0)
    table = pd.DataFrame({"patient": cohort.patient_ids[used], "part": part[used], "row": used})
    several = table.groupby("patient", sort=False)["part"].transform("nunique") > 1
    if several.any():
        shared = table[several]
        rows = ", ".join(map(str, shared["row"].head(6)))
        raise DataError(
            f"{shared['patient'].nunique()} patient(s) stand in two splits.",
            where=f"{cohort.name}, rows {rows}{' ...' if len(shared) > 6 else ''}",
            expected="all rows of a patient in one split",
            next_step=f"Move the rows, or say: split.by='{ACCEPT}'",
        )


def strata_of(label: LabelSpec, targets: Array) -> Array:
    """An integer a row; parts are made alike in it.

    Classes; tenths of a continuous target; the rarest positive label of a multi-label row.
    """
    if label.kind == "continuous":
        ranks = pd.Series(targets).rank(method="first").to_numpy() - 1
        return (ranks * BINS // max(len(targets), 1)).astype(int)
    if label.kind == "multilabel":
        positive = targets == 1
        counts = positive.sum(axis=0)
        rarity = np.where(positive, counts, np.iinfo(np.int64).max)
        return np.where(positive.any(axis=1), rarity.argmin(axis=1), targets.shape[1])
    return targets


def _group_strata(groups: Array, strata: Array) -> tuple[Array, Array, Array]:
    """Per group its rarest stratum and size; and the group place of each row."""
    codes, place = np.unique(groups, return_inverse=True)
    values, counts = np.unique(strata, return_counts=True)
    # A patient with several labels is placed by the rarest: that is the one that can run out.
    order = np.argsort(np.argsort(counts, kind="stable"), kind="stable")
    rank = order[np.searchsorted(values, strata)]
    rarest = np.full(len(codes), len(values))
    np.minimum.at(rarest, place, rank)
    return rarest, np.bincount(place), place


def _dealt(groups: Array, strata: Array, seed: int, name: str) -> tuple[Array, Array]:
    """A position in 0..1 a group, evenly spread within each stratum, and the place of each row."""
    stratum, size, place = _group_strata(groups, strata)
    shuffle = rng(seed, "split", name).permutation(len(stratum))
    order = shuffle[np.argsort(stratum[shuffle], kind="stable")]
    rows = size[order].cumsum() - size[order] / 2
    ends = size[order].cumsum()
    first = np.flatnonzero(np.r_[True, np.diff(stratum[order]) != 0])
    starts = np.repeat((ends - size[order])[first], np.diff(np.r_[first, len(order)]))
    totals = np.repeat(np.add.reduceat(size[order], first), np.diff(np.r_[first, len(order)]))
    position = np.empty(len(stratum))
    position[order] = (rows - starts) / totals
    return position, place


def _shares(groups: Array, strata: Array, shares: dict[str, float], seed: int) -> Array:
    position, place = _dealt(groups, strata, seed, "shares")
    parts = np.full(len(position), "train", dtype=object)
    edge = 0.0
    for part, share in shares.items():
        parts[(position >= edge) & (position < edge + share)] = part
        edge += share
    if edge >= 1:
        raise ConfigError("split.val and split.test leave nothing for training.")
    return parts[place]


def _kfold(groups: Array, strata: Array, config: SplitConfig, seed: int) -> Array:
    if config.fold >= config.folds:
        raise ConfigError(f"split.fold={config.fold}, but there are {config.folds} folds from 0.")
    position, place = _dealt(groups, strata, seed, "kfold")
    fold = np.minimum((position * config.folds).astype(int), config.folds - 1)
    parts = np.full(len(groups), "test", dtype=object)
    rest = fold[place] != config.fold
    # Drawn from who is left: drawn from all, the fold could take every patient of a small part.
    share = min(config.val * config.folds / (config.folds - 1), 0.5)
    parts[rest] = _shares(groups[rest], strata[rest], {"val": share}, seed)
    return parts


def _few_shot(parts: Array, groups: Array, strata: Array, shots: int, seed: int) -> Array:
    """Keep `shots` patients a class in training; fewer shots are a subset of more."""
    train = np.flatnonzero(parts == "train")
    codes, place = np.unique(groups[train], return_inverse=True)
    stratum, _, _ = _group_strata(groups[train], strata[train])
    order = rng(seed, "split", "few_shot").permutation(len(codes))
    turn = pd.Series(stratum[order]).groupby(stratum[order]).cumcount().to_numpy()
    kept = np.zeros(len(codes), bool)
    kept[order[turn < shots]] = True
    result = parts.copy()
    result[train[~kept[place]]] = "unused"
    return result


def _given(cohort: Cohort) -> Array:
    if cohort.split_column is None:
        raise ConfigError("split.how=given, but the manifest has no split column.")
    words = parts_said(cohort.table[cohort.split_column])
    strange = ~words.isin([*PARTS, ""])
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        raise DataError(
            f"'{words.iloc[row]}' is no split.",
            where=f"row {row}, column '{cohort.split_column}'",
            expected="train, val or test",
        )
    return words.to_numpy(dtype=object)


def _site_out(
    cohort: Cohort, rows: Array, groups: Array, strata: Array, config: SplitConfig, seed: int
) -> Array:
    if cohort.site_column is None:
        raise ConfigError("split.how=leave_site_out needs a site column: --site COLUMN")
    column = cohort.sites.iloc[rows]
    sites, unknown = column.to_numpy(), column.isna().to_numpy()
    known = sorted(set(sites[~unknown]))
    site = config.site or known[0]
    if site not in known:
        raise ConfigError(
            f"There is no site '{site}' in column '{cohort.site_column}'.",
            expected=", ".join(known[:20]),
        )
    parts = _shares(groups, strata, {"val": config.val}, seed)
    outside = ~unknown & (sites == site)
    parts[outside] = "test"
    # A row of unknown site may be of the one that is held out.
    parts[unknown] = "unused"
    # A patient seen at the test site and elsewhere would leak; his other rows are left out.
    parts[~outside & np.isin(groups, groups[outside])] = "unused"
    return parts


def _by_date(cohort: Cohort, rows: Array, groups: Array, config: SplitConfig) -> Array:
    if cohort.date_column is None:
        raise ConfigError("split.how=by_date needs a date column: --date COLUMN")
    dates = _dates(cohort.table[cohort.date_column].iloc[rows])
    if dates.isna().any():
        row = int(rows[np.flatnonzero(dates.isna())[0]])
        raise DataError(
            "No date can be read.",
            where=f"row {row}, column '{cohort.date_column}'",
            expected="a date in every row, all written alike, such as 2026-01-31",
        )
    # A patient belongs to the period of the last visit: nothing of the future is trained on.
    last = dates.groupby(groups).transform("max").to_numpy(dtype="datetime64[ns]")
    ordered = np.sort(last)
    test = _first_day(config.date) if config.date else ordered[int(len(last) * (1 - config.test))]
    before = ordered[ordered < test]
    if not len(before):
        raise DataError("No sample lies before the test period.", where=cohort.name)
    share = config.val / max(1 - config.test, 1e-9)
    val = before[min(int(len(before) * (1 - share)), len(before) - 1)]
    return np.where(last >= test, "test", np.where(last >= val, "val", "train")).astype(object)


def _dates(column: pd.Series) -> pd.Series:
    """What the cells say in UTC, NaT where that is no date."""
    return pd.to_datetime(words(column), errors="coerce", utc=True)


def _first_day(date: str) -> np.datetime64:
    found = pd.to_datetime(date, errors="coerce", utc=True)
    if found is pd.NaT:
        raise ConfigError(f"split.date={date} is no date.", expected="such as 2026-01-31")
    return found.to_datetime64()
