"""What was left out, or kept in doubt: counted, and never silently away.

A report names files, places, types and codes. It holds no identifier of a patient: bundles, which
often carry one in their file name, are named by their number.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import polars as pl

from galenic.core.files import atomic_write

SCHEMA: dict[str, pl.DataType] = {
    "source": pl.String(),
    "place": pl.Int64(),
    "kind": pl.String(),
    "reason": pl.String(),
    "kept": pl.Boolean(),
    "count": pl.Int64(),
}

NO_PATIENT = "no patient"
NO_CODE = "no code"
NO_TIME = "no time"
NOT_READ = "a type that holds no events"
NOT_DONE = "its status says that it did not happen"
NO_TABLE = "a table that is not there"
BAD_FILE = "the file cannot be read to its end"
BAD_JSON = "not JSON"
MALFORMED = "a field is not what its format says"
BAD_TIME = "a time that cannot be read"
BAD_VALUE = "a value that cannot be read"
BAD_END = "an end that cannot be read: taken as open"
OPEN = "an encounter without an end"
NEGATIVE = "an end before the start: taken as open"
COPY = "the same id and content again"
CLASH = "the same id with other content: the latest is kept"
DEATH_FIRST = "a death before the birth: both dates left out"
TOLD_AGAIN = "a birth or death told again"
SEVERAL = "several dates of a birth or death: the first is kept"
UNBORN = "more than a day before the birth"
PAST_DEATH = "more than a day after the death"
NAIVE = "a time without a zone"
MIXED = "another time zone than most of its file: turned into UTC"
UNITS = "units disagree"

_KIND = re.compile(r"[\w-]{1,40}")


class Rejections:
    """A count for each source, kind of record and reason, and the first place where it was seen."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str, bool]] = Counter()
        self._places: dict[tuple[str, str, str, bool], int] = {}

    def add(
        self,
        reason: str,
        *,
        source: str = "",
        kind: object = "",
        place: int | None = None,
        count: int = 1,
        kept: bool = False,
    ) -> None:
        """Count something.

        Args:
            reason: One of this module's, with details where they identify nobody.
            source: The file.
            kind: Type of resource, or table; whatever is no such name is shown as `?`.
            place: Line, entry or row in `source`, from 1.
            count: How often.
            kept: Whether it is in the event table all the same.
        """
        name = kind if isinstance(kind, str) and (not kind or _KIND.fullmatch(kind)) else "?"
        key = (source, name, reason, kept)
        self._counts[key] += count
        if place is not None:
            self._places[key] = min(place, self._places.get(key, place))

    def add_rows(self, rows: pl.DataFrame, reason: str, *, kept: bool = False) -> None:
        """Count staged rows, by their columns `file`, `kind` and `place`."""
        if rows.is_empty():
            return
        grouped = rows.group_by("file", "kind").agg(pl.col("place").min(), pl.len())
        for file, kind, place, count in grouped.iter_rows():
            self.add(reason, source=file, kind=kind, place=place, count=count, kept=kept)

    def frame(self) -> pl.DataFrame:
        """The report, most frequent first: `source, place, kind, reason, kept, count`."""
        rows = [
            (key[0], self._places.get(key), *key[1:], count) for key, count in self._counts.items()
        ]
        return pl.DataFrame(rows, schema=SCHEMA, orient="row").sort(
            ["count", "source", "kind", "reason"], descending=[True, False, False, False]
        )


def write(rejected: pl.DataFrame, path: Path) -> Path:
    """Write a report as CSV."""
    return atomic_write(path, rejected.write_csv())
