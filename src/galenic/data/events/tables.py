"""Events of plain tables (CSV, Parquet), OMOP among them, by a :class:`Mapping`.

Cells are read as text, batch by batch; what is a number or a time is decided by the mapping.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from galenic.core.errors import DataError
from galenic.data.events import rejection
from galenic.data.events.mapping import Clock, Event, Join, Mapping, Table, Template, filled
from galenic.data.events.staging import RAW, Intake, instants

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_ROWS = 1 << 16
# A time that is no number must not be read as a date.
_UNREADABLE = "offset "


def batches(folder: Path, mapping: Mapping, intake: Intake) -> Iterator[pl.DataFrame]:
    """Staged rows of the tables in `folder`.

    Raises:
        DataError: If none of the tables is there, one cannot be read, or a column is missing.
    """
    files = {table.file: _files(folder, table.file) for table in mapping.tables}
    if not any(files.values()):
        raise DataError(
            "None of the tables of the mapping is there.",
            where=folder.name,
            expected=f"{', '.join(files)} as {', '.join(SUFFIXES)}",
        )
    for table in mapping.tables:
        if not files[table.file]:
            intake.rejections.add(rejection.NO_TABLE, source=table.file)
        for path in files[table.file]:
            for batch in _batches(path, table, folder):
                for event in table.events:
                    yield _stage(batch, event, table, path, intake)


def _batches(path: Path, table: Table, folder: Path) -> Iterator[pl.DataFrame]:
    """Rows of a table, joined and translated, all cells text, with their number in `place`."""
    other = None if table.join is None else _joined(folder, table.join)
    try:
        for batch in _scan(path).collect_batches(chunk_size=_ROWS, maintain_order=True):
            place, cells = batch["place"].cast(pl.Int64), _texts(batch.drop("place"))
            rows = cells.with_columns(place)
            if other is not None and table.join is not None:
                rows = rows.join(other, on=list(table.join.by), how="left", maintain_order="left")
            rows = _translated(rows, table)
            yield rows if table.wide is None else _long(rows, table.wide)
    except pl.exceptions.ColumnNotFoundError as error:
        raise DataError(f"A column is missing: {error}.", where=path.name) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _broken(path, error) from None


def _scan(path: Path) -> pl.LazyFrame:
    if path.name.endswith(".parquet"):
        scan = pl.scan_parquet(path)
    else:
        separator = "\t" if ".tsv" in path.name else ","
        scan = pl.scan_csv(path, separator=separator, infer_schema=False)
    return scan.with_row_index("place", offset=1)


def _texts(frame: pl.DataFrame) -> pl.DataFrame:
    """All cells as text without blanks around, blank cells null."""
    text = pl.all().cast(pl.String).str.strip_chars()
    return frame.with_columns(text).with_columns(pl.when(pl.all() != "").then(pl.all()))


def _joined(folder: Path, join: Join) -> pl.DataFrame:
    """The other table, one row a key, under the names that the key has in this one."""
    names = [*join.by, *join.columns]
    paths = _files(folder, join.file)
    if not paths:
        if join.optional:
            return pl.DataFrame(schema=dict.fromkeys(names, pl.String()))
        raise DataError(f"The table '{join.file}' is not there.", where=folder.name)
    keys = [pl.col(other).alias(own) for own, other in join.by.items()]
    try:
        frame = _scan(paths[0]).select(*keys, *join.columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _broken(paths[0], error) from None
    return _texts(frame).unique(list(join.by), keep="first", maintain_order=True)


def _translated(rows: pl.DataFrame, table: Table) -> pl.DataFrame:
    found = {name: cells for name, cells in table.translate.items() if name in rows.columns}
    # An empty translation blanks the cell.
    return rows.with_columns(
        pl.col(name).replace({cell: other or None for cell, other in cells.items()})
        for name, cells in found.items()
    )


def _long(rows: pl.DataFrame, columns: str) -> pl.DataFrame:
    named = [name for name in rows.columns if pl.Series([name]).str.contains(f"^(?:{columns})$")[0]]
    rest = [name for name in rows.columns if name not in named]
    long = rows.unpivot(named, index=rest, variable_name="column", value_name="cell")
    return long.filter(pl.col("cell").is_not_null())


def _stage(
    batch: pl.DataFrame, event: Event, table: Table, path: Path, intake: Intake
) -> pl.DataFrame:
    columns, where = batch.columns, f"table {path.name}"
    for name in (*event.needs, *event.where):
        filled(f"{{{name}}}", columns, where)
    rows = batch.filter(
        *(pl.col(name).is_not_null() for name in event.needs),
        *(pl.col(name).is_in(cells) for name, cells in event.where.items()),
    )
    raw = rows.select(
        patient_id=filled(table.patient, columns, where),
        time=_moment(event.time, table.clock, columns, where),
        code=filled(event.code, columns, where),
        value=filled(event.value, columns, where),
        text=filled(event.text, columns, where),
        unit=filled(event.unit, columns, where),
        source=pl.lit(event.source),
        encounter_id=filled(event.encounter, columns, where),
        end=_moment(event.end, table.clock, columns, where),
        file=pl.lit(intake.label(path)),
        place=pl.col("place"),
        kind=pl.lit(_stem(path)),
        record=filled(table.id, columns, where),
        updated=pl.lit(None, dtype=pl.String),
        medication=pl.lit(None, dtype=pl.String),
    )
    return intake.stage(_checked(raw, event, intake).select(RAW.keys()))


def _moment(
    template: Template | None, clock: Clock | None, columns: list[str], where: str
) -> pl.Expr:
    """A time as it is written, or counted from the zero of its row."""
    written = filled(template, columns, where)
    if template is None or clock is None:
        return written
    number = written.cast(pl.Float64, strict=False)
    if clock.minus is not None:
        number -= filled(clock.minus, columns, where).cast(pl.Float64, strict=False)
    seconds = {"minutes": 60, "hours": 3600, "days": 86400}[clock.unit]
    span = pl.duration(microseconds=(number * seconds * 1e6).round().cast(pl.Int64, strict=False))
    moment = instants(filled(clock.zero, columns, where), "UTC") + span
    exact = moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.f+00:00")
    return pl.coalesce(exact, pl.lit(_UNREADABLE) + written)


def _checked(raw: pl.DataFrame, event: Event, intake: Intake) -> pl.DataFrame:
    """`raw` with numbers, without rows that lack a patient, a code or a time."""
    needed = [("patient_id", rejection.NO_PATIENT), ("code", rejection.NO_CODE)]
    if event.time is not None:
        needed.append(("time", rejection.NO_TIME))
    for name, reason in needed:
        intake.rejections.add_rows(raw.filter(pl.col(name).is_null()), reason)
        raw = raw.filter(pl.col(name).is_not_null())
    number = pl.col("value").cast(pl.Float64, strict=False)
    number = pl.when(number.is_finite()).then(number)
    bad = pl.col("value").is_not_null() & number.is_null()
    intake.rejections.add_rows(raw.filter(bad), f"{rejection.BAD_VALUE}: kept as text", kept=True)
    # What is no number, such as '<0.5', is not lost.
    text = pl.when(bad).then(pl.coalesce("text", "value")).otherwise("text")
    return raw.with_columns(value=number, text=text)


def _files(folder: Path, pattern: str) -> list[Path]:
    """The tables of a name, whatever its case; of one name in two formats the first."""
    files = [folder] if folder.is_file() else sorted(folder.iterdir())
    found: dict[str, Path] = {}
    for path in files:
        stem = _stem(path).lower()
        if path.name.lower().endswith(SUFFIXES) and fnmatch.fnmatch(stem, pattern.lower()):
            found.setdefault(stem, path)
    return list(found.values())


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _broken(path: Path, error: Exception) -> DataError:
    return DataError(
        f"The table cannot be read: {str(error).splitlines()[0]}.",
        where=path.name,
        expected="a table of its suffix, in UTF-8",
    )
