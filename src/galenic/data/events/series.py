"""From the event table to irregular series: what was measured in a window before a cutoff.

An event belongs to a window of some hours if it lies before the cutoff, and not before the
beginning; what is earlier, later or without a time is left out, and counted. Hours run from the
beginning of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

Array = np.ndarray[Any, np.dtype[Any]]
Counts = dict[str, int]
_MICROSECONDS = 3.6e9


@dataclass(frozen=True, eq=False)
class Series:
    """Irregular series of S stays, in rows of one time each, sorted by stay and time.

    Attributes:
        values: Standardised float32 [N, D]; 0 where nothing was measured.
        mask: Bool [N, D].
        hours: float32 [N], since the beginning of the window.
        starts: int64 [S + 1]: stay s has the rows starts[s] to starts[s + 1].
    """

    values: Array
    mask: Array
    hours: Array
    starts: Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, stay: int) -> slice:
        """Where the rows of a stay are; none, if nothing was measured."""
        return slice(int(self.starts[stay]), int(self.starts[stay + 1]))

    @property
    def stays(self) -> Array:
        """The stay of each row: int64 [N]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def of(self, channels: Sequence[int]) -> Series:
        """Some of the channels; times at which none of them was measured are gone."""
        mask = self.mask[:, channels]
        kept = mask.any(axis=1)
        starts = starts_of(self.stays[kept], len(self))
        return Series(self.values[kept][:, channels], mask[kept], self.hours[kept], starts)

    def thinned(self, keep: float, draw: np.random.Generator) -> Series:
        """The same series with a random share `keep` of its measurements."""
        mask = self.mask & (draw.random(self.mask.shape) < keep)
        values = np.where(mask, self.values, np.float32(0))
        return Series(values, mask, self.hours, self.starts).of(range(mask.shape[1]))


def starts_of(stays: Array, count: int) -> Array:
    """Where each of `count` stays begins in rows that are sorted by stay: int64 [count + 1]."""
    return np.searchsorted(stays, np.arange(count + 1)).astype(np.int64)


def windows(events: pl.DataFrame, stays: pl.DataFrame, hours: float) -> tuple[pl.DataFrame, Counts]:
    """The events of each stay's window.

    Args:
        events: The event table.
        stays: `patient_id` and `cutoff`, one row a stay.
        hours: Length of the window.

    Returns:
        Columns `stay` (row of `stays`), `hours`, `code`, `value`, `text`, `unit` and `source`,
        sorted by stay and hours; and how many events lay where. An event counts once for every
        stay of its patient.
    """
    length = pl.lit(hours)
    since = (pl.col("time") - pl.col("cutoff")).dt.total_microseconds() / _MICROSECONDS
    joined = (
        stays.lazy()
        .select("patient_id", "cutoff")
        .with_row_index("stay")
        .join(events.lazy(), on="patient_id", how="inner", maintain_order="left_right")
        .with_columns(hours=length + since)
        .with_columns(
            place=pl.when(pl.col("hours").is_null())
            .then(pl.lit("untimed"))
            .when(pl.col("hours") < 0)
            .then(pl.lit("before"))
            .when(pl.col("hours") >= length)
            .then(pl.lit("after"))
            .otherwise(pl.lit("inside"))
        )
        .select("stay", "hours", "code", "value", "text", "unit", "source", "place")
        .collect()
    )
    note = joined["source"] == "note"
    counts = {
        f"{what}_{place}": int((chosen & (joined["place"] == place)).sum())
        for what, chosen in (("events", ~note), ("notes", note))
        for place in ("inside", "before", "after", "untimed")
    }
    known = stays["patient_id"].is_in(events["patient_id"].unique().implode())
    counts["stays"] = len(stays)
    counts["stays_of_unknown_patients"] = int((~known).sum())
    inside = joined.filter(pl.col("place") == "inside").drop("place")
    return inside.sort("stay", "hours", maintain_order=True), counts


@dataclass(frozen=True, eq=False)
class Notes:
    """The last notes of S stays, sorted by stay and time.

    Attributes:
        texts: [N].
        hours: float32 [N], since the beginning of the window.
        starts: int64 [S + 1], as of :class:`Series`.
    """

    texts: list[str]
    hours: Array
    starts: Array

    def rows(self, stay: int) -> slice:
        """Where the notes of a stay are; none, if nobody wrote one."""
        return slice(int(self.starts[stay]), int(self.starts[stay + 1]))


def last_notes(found: pl.DataFrame, stays: int, last: int) -> tuple[Notes, Counts]:
    """The last notes of each window.

    Args:
        found: Of :func:`windows`.
        stays: Number of stays.
        last: How many at most; earlier ones are left out, and counted.
    """
    written = found.filter(
        (pl.col("source") == "note") & (pl.col("text").str.strip_chars().str.len_chars() > 0)
    )
    kept = written.group_by("stay", maintain_order=True).tail(last)
    starts = starts_of(kept["stay"].to_numpy().astype(np.int64), stays)
    counts = {
        "notes_read": len(kept),
        "notes_too_many": len(written) - len(kept),
        "stays_without_notes": int((np.diff(starts) == 0).sum()),
    }
    hours = kept["hours"].to_numpy().astype(np.float32)
    return Notes(kept["text"].to_list(), hours, starts), counts
