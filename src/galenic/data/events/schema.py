"""The event table: one polars frame, one row an event.

| column | type | meaning |
| --- | --- | --- |
| `patient_id` | str | whose event; never null |
| `time` | datetime, us, UTC | when it was known; null for what has no time (sex) |
| `code` | str | what; never null |
| `value` | f64 | a number, in `unit` |
| `text` | str | words, or a coded answer |
| `unit` | str | the unit of `value`, as it was written |
| `source` | one of :data:`SOURCES` | which kind of record it came from |
| `encounter_id` | str | the encounter it belongs to |
| `end` | datetime, us, UTC | the end of an encounter, a condition or a prescription |

Birth and death are rows; an encounter is one row from `time` to `end`; what is static has no time.
"""

from __future__ import annotations

import polars as pl

from galenic.core.errors import DataError

BIRTH = "MEDS_BIRTH"
DEATH = "MEDS_DEATH"
GENDER = "GENDER//"
ENCOUNTER = "ENCOUNTER//"

TIME = pl.Datetime("us", "UTC")
SOURCES = (
    "patient", "encounter", "lab", "vital", "medication", "procedure", "condition", "note", "other",
)  # fmt: skip
SCHEMA: dict[str, pl.DataType] = {
    "patient_id": pl.String(),
    "time": TIME,
    "code": pl.String(),
    "value": pl.Float64(),
    "text": pl.String(),
    "unit": pl.String(),
    "source": pl.String(),
    "encounter_id": pl.String(),
    "end": TIME,
}
COLUMNS = tuple(SCHEMA)
# The first five say the order; the rest only make it one order, whatever order the rows came in.
ORDER = (
    "patient_id", "time", "source", "code", "value", "text", "unit", "encounter_id", "end",
)  # fmt: skip


def empty() -> pl.DataFrame:
    """An event table without rows."""
    return pl.DataFrame(schema=SCHEMA)


def ordered(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns and the rows in the order of the table; nulls first."""
    return frame.select(COLUMNS).sort(ORDER, nulls_last=False)


def validate(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame`, if it is an event table.

    Raises:
        DataError: A column is missing, surplus or of another type, a patient, a code or a source
            is null or unknown, or the rows are out of order.
    """
    if dict(frame.schema) != SCHEMA:
        wrong = [f"{n} ({t})" for n, t in frame.schema.items() if SCHEMA.get(n) != t]
        missing = [name for name in COLUMNS if name not in frame.columns]
        raise DataError(
            "This is not an event table.",
            where=f"columns: {', '.join([*wrong, *(f'{name} (missing)' for name in missing)])}",
            expected=", ".join(f"{name} ({kind})" for name, kind in SCHEMA.items()),
            next_step="galenic.data.events.read(...) makes one",
        )
    for name in ("patient_id", "code", "source"):
        if nulls := frame[name].null_count():
            raise DataError(f"{nulls} events have no {name}.", where=f"column {name}")
    unknown = frame.filter(~pl.col("source").is_in(SOURCES))["source"].unique().sort()
    if len(unknown):
        raise DataError(
            f"Unknown kinds of event: {', '.join(unknown[:5])}.",
            where="column source",
            expected=", ".join(SOURCES),
        )
    if not frame.equals(ordered(frame)):
        raise DataError(
            "The events are out of order.",
            expected=f"sorted by {', '.join(ORDER[:5])}, nulls first",
            next_step="galenic.data.events.ordered(frame)",
        )
    return frame
