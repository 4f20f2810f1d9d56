"""Tables as files hold them, with nothing of a cell lost or made up."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import ArrowInvalid, csv, string

from galenic.core.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".jsonl", ".ndjson")
# pandas' own list but for None, which is a grade or a finding as often as it is nothing.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null")  # fmt: skip
# What a number would not be written back as: codes that begin with 0, and ids beyond a float.
CODE = r"0\d+|\d{16,}"
DECIMAL_COMMA = r"[-+]?\d+(,\d+)?"


def suffix_of(path: Path) -> str:
    """The suffix of a table, also of a packed one; '' where it is none."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read(path: Path) -> pd.DataFrame:
    """A CSV or TSV (also with semicolons), Parquet or JSON Lines file; each may end in .gz.

    A cell that is blank or one of `MISSING` is missing; None is too between numbers. A column of
    codes, such as 0012, keeps them as words.

    Raises:
        DataError: If a text is not UTF-8, or a row has more cells than the table has columns.
        ValueError: If it cannot be parsed.
    """
    suffix = suffix_of(path)
    if suffix in (".parquet", ".pq"):
        return pd.read_parquet(path)
    if suffix in (".jsonl", ".ndjson"):
        # As it is written: pandas would guess numbers and dates from words and names.
        return pd.read_json(path, lines=True, dtype=False, convert_dates=False, precise_float=True)
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    _require_utf8(raw, path.name)
    header = next((line for line in io.BytesIO(raw) if line.strip()), b"").decode("utf-8-sig")
    # The comma wins a tie.
    separator = "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
    table = _read_csv(raw, separator)
    return _with_numbers(table, decimal_comma=separator == ";")


def plain(source: Any) -> pd.DataFrame:
    """A copy of a data frame with text column names, no index, and no blanks around words.

    A named index becomes columns. A cell of blanks is missing.

    Raises:
        DataError: If two columns are called the same.
    """
    named = [n for n in source.index.names if n is not None and n not in source.columns]
    table = source.reset_index(level=named) if named else source
    table = table.reset_index(drop=True).copy()
    table.columns = [str(column).strip() for column in table.columns]
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise DataError(f"Two columns are called '{twice[0]}'.", expected="a name for each column")
    for column in table.columns:
        values = table[column]
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(values.cat.categories.dtype)
        if isinstance(values.dtype, pd.StringDtype):
            words = values.str.strip()
            table[column] = words.where(words != "")
        elif values.dtype == object:
            table[column] = values.map(_without_blanks)
    return table


def words(values: pd.Series) -> pd.Series:
    """Cells as words, missing where they are; 2 and 2.0 are both '2', whatever stands beside."""
    if isinstance(values.dtype, pd.StringDtype):
        return values
    if values.dtype == object:
        return values.map(_word, na_action="ignore").astype("str")
    codes, distinct = pd.factorize(values)
    found = pd.array([*map(_word, distinct), None], dtype="str")
    return pd.Series(found[codes], index=values.index, name=values.name)


def _word(cell: Any) -> str:
    whole = isinstance(cell, float | np.floating) and float(cell).is_integer()
    return str(int(cell)) if whole else str(cell)


def _without_blanks(cell: Any) -> Any:
    return (cell.strip() or None) if isinstance(cell, str) else cell


def _require_utf8(raw: bytes, name: str) -> None:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            "The manifest is not in UTF-8.",
            where=f"{name}, line {line}",
            expected="a text in UTF-8",
            next_step="Save it as 'CSV UTF-8', or: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from None


def _read_csv(raw: bytes, separator: str) -> pd.DataFrame:
    options: dict[str, Any] = {
        "sep": separator, "na_values": list(MISSING), "keep_default_na": False
    }  # fmt: skip
    try:
        table = pd.read_csv(io.BytesIO(raw), engine="pyarrow", **options)
        numbers = _whole(table)
        names = list(table.columns)
        written = _as_written(raw, separator, names, numbers) if numbers else table[[]]
    except pd.errors.EmptyDataError:
        raise
    except (ValueError, pd.errors.ParserError, ArrowInvalid):
        # Quoted line breaks and ragged rows are beyond the fast engine.
        table = _in_columns(pd.read_csv(io.BytesIO(raw), low_memory=False, **options))
        written = _in_columns(pd.read_csv(io.BytesIO(raw), dtype=str, **options))
        written = written[_whole(table)]
    nameless = [c for c in table if str(c).startswith("Unnamed: ") and table[c].isna().all()]
    table = table.drop(columns=nameless)
    for column in written.columns.difference(nameless):
        if written[column].str.fullmatch(CODE).any():
            table[column] = written[column]
    return table


def _whole(table: pd.DataFrame) -> list[str]:
    """Columns of whole numbers, which may be codes."""
    numbers = map(str, table.select_dtypes("number"))
    return [name for name in numbers if not (table[name] % 1).any()]


def _as_written(
    raw: bytes, separator: str, names: Sequence[str], columns: Sequence[str]
) -> pd.DataFrame:
    """Some columns of those called `names`, without a guess at their type."""
    found = csv.read_csv(
        io.BytesIO(raw),
        # The file may call columns by nothing, or two of them alike.
        read_options=csv.ReadOptions(column_names=list(names), skip_rows=1),
        parse_options=csv.ParseOptions(delimiter=separator),
        convert_options=csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, string()),
            null_values=list(MISSING),
            strings_can_be_null=True,
        ),
    )
    return pd.DataFrame(found.to_pandas())


def _in_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Cells under their own column where rows end in separators.

    pandas takes the first columns of rows that are longer than the header for an index.
    """
    if isinstance(table.index, pd.RangeIndex):
        return table
    surplus = table.index.nlevels
    cells = table.reset_index()
    beyond = cells.iloc[:, -surplus:].notna().any(axis=1)
    if beyond.any():
        raise DataError(
            "A row has more cells than the table has columns.",
            where=f"row {int(beyond.to_numpy().argmax())}",
            expected=f"{table.shape[1]} cells",
            next_step="Put a cell that holds a separator, such as 2,5, between quotation marks.",
        )
    cells = cells.iloc[:, :-surplus]
    cells.columns = table.columns
    return cells


def _with_numbers(table: pd.DataFrame, decimal_comma: bool) -> pd.DataFrame:
    """Columns of numbers in which None stands for nothing, or a comma before the decimals."""
    for column in map(str, table.select_dtypes("str")):
        cells = table[column]
        known = cells.mask(cells == "None")
        if decimal_comma and known.str.fullmatch(DECIMAL_COMMA).where(known.notna(), True).all():
            known = known.str.replace(",", ".")
        elif known.equals(cells):
            continue
        numbers = pd.to_numeric(known, errors="coerce")
        if known.notna().any() and numbers.notna().equals(known.notna()):
            table[column] = numbers
    return table
