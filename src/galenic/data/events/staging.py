"""What every reader hands on: rows with written times and where they came from.

A reader yields raw frames (:data:`RAW`); :meth:`Intake.stage` turns their written times into UTC.
What needs all rows of a patient at once is left to :mod:`galenic.data.events.checks`.
"""

from __future__ import annotations

import zoneinfo
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from galenic.core.errors import ConfigError
from galenic.data.events import rejection
from galenic.data.events.rejection import Rejections
from galenic.data.events.schema import SCHEMA

# Where a row came from. `record` is the id of its resource, `updated` the version of that, and
# `medication` the id of the Medication that holds its code.
ORIGIN: dict[str, pl.DataType] = {
    "file": pl.String(),
    "place": pl.Int64(),
    "kind": pl.String(),
    "record": pl.String(),
    "updated": pl.String(),
    "medication": pl.String(),
}
RAW: dict[str, pl.DataType] = {**SCHEMA, "time": pl.String(), "end": pl.String(), **ORIGIN}
STAGED: dict[str, pl.DataType] = {**SCHEMA, **ORIGIN}

_ZONE = r"T.*(Z|[+-]\d\d:?\d\d)$"
_ZONED = "%Y-%m-%dT%H:%M:%S%.f%#z"
_NAIVE = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")


@dataclass
class Intake:
    """What the reading of one or many files gathers beside the rows.

    Attributes:
        timezone: Where clocks without a zone hang.
        rejections: What was left out or kept in doubt.
        names: What the codes mean, in words, where a file says it.
        medications: Code of each Medication resource, by its id.
    """

    timezone: str = "UTC"
    rejections: Rejections = field(default_factory=Rejections)
    names: dict[str, str] = field(default_factory=dict)
    medications: dict[str, str] = field(default_factory=dict)
    _labels: dict[Path, str] = field(default_factory=dict)
    _taken: Counter[str] = field(default_factory=Counter)
    _zones: dict[str, Counter[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            zoneinfo.ZoneInfo(self.timezone)
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
            raise ConfigError(
                f"There is no time zone '{self.timezone}'.",
                where="timezone",
                expected="a name of the IANA list, such as UTC or Europe/Rome",
            ) from None

    def label(self, path: Path, name: str = "") -> str:
        """What the report calls a file: `name` or that of the file, with a number from the second on."""
        if path not in self._labels:
            name = name or path.name
            self._taken[name] += 1
            number = self._taken[name]
            self._labels[path] = name if number == 1 else f"{name} {number}"
        return self._labels[path]

    def stage(self, raw: pl.DataFrame) -> pl.DataFrame:
        """`raw` rows with times in UTC; those whose time cannot be read are counted and left out."""
        frame = raw.with_columns(
            _time=instants(pl.col("time"), self.timezone),
            _end=instants(pl.col("end"), self.timezone),
            _zone=pl.col("time").str.extract(_ZONE),
        )
        self._count_zones(frame)
        written = pl.col("time").is_not_null()
        naive = written & pl.col("_zone").is_null() & pl.col("time").str.contains(":", literal=True)
        self.rejections.add_rows(frame.filter(naive), rejection.NAIVE, kept=True)
        bad = written & pl.col("_time").is_null()
        self.rejections.add_rows(frame.filter(bad), rejection.BAD_TIME)
        bad_end = pl.col("end").is_not_null() & pl.col("_end").is_null()
        self.rejections.add_rows(frame.filter(bad_end & ~bad), rejection.BAD_END, kept=True)
        return (
            frame.filter(~bad)
            .with_columns(time=pl.col("_time"), end=pl.col("_end"))
            .select(STAGED.keys())
        )

    def _count_zones(self, frame: pl.DataFrame) -> None:
        grouped = frame.filter(pl.col("_zone").is_not_null()).group_by("file", "_zone").len()
        for file, zone, count in grouped.iter_rows():
            zone = "+00:00" if zone == "Z" else zone
            self._zones.setdefault(file, Counter())[zone] += count

    def report_zones(self) -> None:
        """Count the rows whose zone is not the usual one of their file, once all are read."""
        for file, zones in self._zones.items():
            others = zones.total() - max(zones.values())
            if others:
                self.rejections.add(rejection.MIXED, source=file, count=others, kept=True)


def instants(text: pl.Expr, timezone: str) -> pl.Expr:
    """Written dates and times in UTC; null for what is neither.

    Years and months stand for their first day, and days for their first moment in `timezone`.
    """
    clean = text.str.strip_chars().str.replace(" ", "T", literal=True)
    length = clean.str.len_bytes()
    whole = (
        pl.when(length == 4)
        .then(clean + "-01-01")
        .when(length == 7)
        .then(clean + "-01")
        .otherwise(clean)
    )
    zoned = whole.str.to_datetime(_ZONED, time_unit="us", time_zone="UTC", strict=False)
    naive = pl.coalesce(
        whole.str.to_datetime(form, time_unit="us", strict=False) for form in _NAIVE
    )
    # An hour that the clock skips in spring never was: null. One it shows twice is the first.
    local = naive.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    return pl.coalesce(zoned, local.dt.convert_time_zone("UTC"))
