"""Manifests: tables, folders of class folders, and what their columns mean."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from galenic.core.errors import DataError, GalenicError, nearest
from galenic.data import tables
from galenic.data.box_formats import is_yolo, read_coco, read_yolo
from galenic.data.breakhis import is_breakhis, read_breakhis
from galenic.data.readers import LONGEST_CELL, is_here, modality_in, modality_of

ROLES = {
    "patient_id": ("patient_id", "patientid", "subject_id", "subject", "patient", "uniquepid",
                   "speaker_id", "case_id", "person_id", "recordid", "encounter_id", "mrn",
                   "pid", "medical_record_number", "patient_number", "patient_no", "nhs_number"),
    "label": ("label", "labels", "target", "class", "diagnosis", "diagnosis_label", "y", "boxes",
              "mask"),
    "site": ("site", "site_code", "hospital", "hospitalid", "centre", "center", "institution"),
    "date": ("date", "recording_date", "study_date", "acquired", "admission_date"),
    "split": ("split", "fold_name", "partition"),
}  # fmt: skip
# Other words for the parts of a split.
PART_WORDS = {
    "training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"
}  # fmt: skip
# A text cell is prose from about this many words on; below it is a category.
PROSE_WORDS = 3
# More different words than this, or than half the rows, are names of something.
MOST_WORDS = 50
LOOKED_AT = 200
LOOKED_INTO = 5
# One-letter residues: a sequence is prose for a network of proteins.
PROTEIN = r"[ACDEFGHIKLMNPQRSTVWYXBZ]{20,}"


def read_table(path: Path) -> pd.DataFrame:
    """A CSV, TSV, Parquet, JSON Lines or COCO file, or a folder: of classes, YOLO or BreakHis.

    Raises:
        DataError: If it is missing, empty, or of no such kind.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"There is no file '{path.name}'. {nearest(path.name, siblings)}".strip(),
            where=str(path.parent),
        )
    try:
        if path.name.lower().removesuffix(".gz").endswith(".json"):
            return read_coco(path)
        if tables.suffix_of(path):
            return tables.read(path)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, pd.errors.EmptyDataError):
            raise DataError(
                "The manifest is empty.",
                where=path.name,
                expected="a line with the names of the columns, and under it a line per sample",
                next_step="Write it again: the file has no bytes, or only blanks.",
            ) from None
        # Not the parser's own words: they may hold what stands in a cell.
        cells = "Look for a quotation mark that is not closed, or a row with too many cells."
        raise DataError(
            f"The manifest cannot be read: {type(error).__name__}.",
            where=path.name,
            expected="a table of its suffix, in UTF-8",
            next_step=cells if isinstance(error, pd.errors.ParserError) else "",
        ) from None
    raise DataError(
        f"'{path.suffix}' is no kind of manifest.",
        where=path.name,
        expected=".csv, .tsv, .parquet, .jsonl (each may end in .gz), a COCO .json, or a folder",
    )


def _read_folder(path: Path) -> pd.DataFrame:
    if is_yolo(path):
        return read_yolo(path)
    return read_breakhis(path) if is_breakhis(path) else _class_folders(path)


def _class_folders(path: Path) -> pd.DataFrame:
    files = sorted(p for p in path.glob("*/*") if modality_of(p.name) or _is_series(p))
    if not files:
        raise DataError(
            f"'{path.name}' holds no class folders with readable files.",
            expected=f"{path.name}/CLASS/FILE.png",
        )
    return pd.DataFrame(
        {"file": [str(p.relative_to(path)) for p in files], "label": [p.parent.name for p in files]}
    )


def _is_series(path: Path) -> bool:
    return path.is_dir() and modality_in(path) is not None


def column_for(role: str, asked: str | None, columns: Iterable[str]) -> str | None:
    """The column that plays `role`: the one asked for, or the first usual name.

    Raises:
        DataError: If the one asked for is not there, naming the nearest.
    """
    columns = [str(column) for column in columns]
    if asked is not None:
        require_column(asked, columns)
        return asked
    usual = {re.sub(r"[\s-]+", "_", column.lower()): column for column in columns}
    return next((usual[name] for name in ROLES[role] if name in usual), None)


def require_column(name: str, columns: Iterable[str]) -> None:
    """Check that a column is there.

    Raises:
        DataError: Naming the nearest.
    """
    columns = [str(column) for column in columns]
    if name not in columns:
        raise DataError(
            f"There is no column '{name}'. {nearest(name, columns)}".strip(),
            expected=", ".join(columns[:30]),
        )


def parts_said(values: pd.Series) -> pd.Series:
    """What the cells of a split column say: train, val, test, '' for nothing, or another word."""
    return tables.words(values).fillna("").str.lower().replace(PART_WORDS)


def detect(values: pd.Series, root: Path) -> str | None:
    """Modality of a column: by the files it names, else `text` for prose, `table`, or None.

    Args:
        values: The column.
        root: What paths are relative to.
    """
    known = values.dropna()
    if known.empty:
        return None
    head = tables.words(known.head(LOOKED_AT))
    if not _is_text(known):
        # Records and folders may be called by numbers.
        on_disk = set(_modalities(head, root))
        return "table" if None in on_disk or len(on_disk) > 1 else on_disk.pop()
    found = {modality_of(cell) for cell in head}
    if len(found) == 1 and None not in found:
        return next((m for m in _modalities(head, root) if m), found.pop())
    if found == {None} and (on_disk := set(_modalities(head, root))) != {None}:
        return on_disk.pop() if len(on_disk) == 1 else None
    if head.str.fullmatch(PROTEIN).all():
        return "text"
    words = head.map(lambda cell: len(re.findall(r"\w+", cell))).median()
    return "text" if words >= PROSE_WORDS else "table"


def names_rows(values: pd.Series) -> bool:
    """Whether a column of words is more likely to name its rows than to describe them."""
    if not _is_text(values):
        return False
    return tables.words(values).nunique() > min(MOST_WORDS, len(values) / 2)


def present(values: pd.Series, root: Path) -> bool:
    """Whether one of the first files that a column names is there.

    Args:
        values: The column.
        root: What paths are relative to.
    """
    cells = tables.words(values.dropna().head(LOOKED_INTO))
    return any(is_here(root / cell) for cell in cells)


def require_one_kind(values: pd.Series, root: Path) -> None:
    """Check that a column which is read as words or numbers does not name files.

    Args:
        values: The column.
        root: What paths are relative to.

    Raises:
        DataError: With the kinds of file that it names.
    """
    cells = values.dropna()
    first = tables.words(cells.head(LOOKED_INTO))
    # Unlike `Path.is_file`, this says no to a text too long for a name.
    named = (cell for cell in first if os.path.isfile(root / cell))  # noqa: PTH113
    if not any(Path(cell).suffix for cell in named):
        return
    counts = cells.map(lambda cell: Path(str(cell)).suffix.lower()).value_counts()
    if list(counts.index) == [".txt"]:
        return
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.items())
    raise DataError(
        f"Column '{values.name}' names files that no one reader takes: {kinds}.",
        expected="files of one modality",
        next_step="Keep the rows of one kind, or name other inputs with --inputs.",
    )


def _modalities(cells: pd.Series, root: Path) -> Iterator[str | None]:
    """What the first files say that are there; most columns are decided by one."""
    for cell in cells.head(LOOKED_INTO):
        path = root / cell
        try:
            yield modality_in(path) if len(cell) < LONGEST_CELL else None
        except (GalenicError, OSError, ValueError):
            yield None


def _is_text(values: pd.Series) -> bool:
    return not (
        pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)
    )
