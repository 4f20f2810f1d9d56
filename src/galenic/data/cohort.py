"""The cohort: who the data is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galenic.core import registry
from galenic.core.errors import DataError
from galenic.core.fingerprint import fingerprint_bytes
from galenic.data import manifest, tables
from galenic.data.labels import LabelKind, LabelSpec, encode, infer
from galenic.data.readers import header, parts_of, read
from galenic.data.values import Header

Array = np.ndarray[Any, np.dtype[Any]]
SAMPLE = "sample:"


@dataclass(frozen=True, eq=False)
class Cohort:
    """Samples of patients, one row a sample; nothing is read before it is asked for.

    Attributes:
        table: The manifest.
        root: Paths in the manifest are relative to it.
        inputs: Modality by input column; a plain table is one input named `table`.
        label: What is to be predicted, if anything.
        patient_ids: An integer code a row; equal codes, same patient.
        name: Of the manifest, without its folder.
        title: One line for people.
        license: Terms of the data, where known.
        patient_column: What `patient_ids` are read from; None where each row is a patient.
        site_column: Hospital or device, where known.
        date_column: When the sample was taken, where known.
        split_column: Given parts, where known.
        notes: What was assumed and should be known.
        feature_columns: Columns of a table input.
    """

    table: pd.DataFrame
    root: Path
    inputs: dict[str, str]
    label: LabelSpec | None
    patient_ids: Array
    name: str
    title: str = ""
    license: str = ""
    patient_column: str | None = None
    site_column: str | None = None
    date_column: str | None = None
    split_column: str | None = None
    notes: tuple[str, ...] = ()
    feature_columns: tuple[str, ...] = field(default=())

    @classmethod
    def open(
        cls,
        source: str | Path | pd.DataFrame,
        *,
        inputs: Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        kind: LabelKind | None = None,
        patient_id: str | None = None,
        site: str | None = None,
        date: str | None = None,
        split: str | None = None,
        root: str | Path | None = None,
    ) -> Cohort:
        """Open a manifest, a folder of class folders, a data frame, or `sample:NAME`.

        Columns that are not named are guessed from their names and values.

        Args:
            source: Where the samples are listed.
            inputs: Input columns.
            label: Label column, or several for multi-label.
            kind: Kind of the label.
            patient_id: Column that says whose sample a row is.
            site: Hospital or device.
            date: When the sample was taken.
            split: Column of train, val and test.
            root: What paths are relative to; None for the manifest's own folder.

        Raises:
            DataError: If the manifest, a column or a label is missing or wrong.
        """
        if isinstance(source, str) and source.startswith(SAMPLE):
            sample = registry.load("galenic.data.samples", source.removeprefix(SAMPLE)).build()
            cohort = cls.open(
                sample.table,
                inputs=inputs or sample.inputs,
                label=label or sample.label,
                kind=kind or sample.kind,
                patient_id=patient_id or sample.patient_id,
                site=site,
                date=date,
                split=split,
                root=sample.root,
            )
            return replace(
                cohort, name=source, title=sample.title, license=sample.license, notes=()
            )
        if isinstance(source, pd.DataFrame):
            found, name, base = source, "table in memory", Path.cwd()
        else:
            path = Path(source)
            found, name = manifest.read_table(path), path.name
            base = path if path.is_dir() else path.parent
        table = tables.plain(found)
        if table.empty:
            raise DataError("The manifest has no rows.", where=name, expected="one row a sample")
        return cls._of(
            table, name, Path(root) if root else base, inputs, label, kind, patient_id, site, date,
            split,
        )  # fmt: skip

    @classmethod
    def _of(
        cls,
        table: pd.DataFrame,
        name: str,
        root: Path,
        inputs: Sequence[str] | None,
        label: str | Sequence[str] | None,
        kind: LabelKind | None,
        patient_id: str | None,
        site: str | None,
        date: str | None,
        split: str | None,
    ) -> Cohort:
        columns = list(table.columns)
        roles = {
            role: manifest.column_for(role, asked, columns)
            for role, asked in {
                "patient_id": patient_id, "site": site, "date": date, "split": split
            }.items()
        }  # fmt: skip
        label_columns = _label_columns(label, columns)
        spec = infer(table, label_columns, kind) if label_columns else None
        # A guessed split column that does not say train, val and test is something else.
        if split is None and roles["split"] and not _says_parts(table[roles["split"]]):
            roles["split"] = None
        taken = {*label_columns, *(column for column in roles.values() if column)}
        found, features, notes = _inputs(table, root, inputs, taken, label_columns, name)
        codes = _patients(table, roles["patient_id"])
        if roles["patient_id"] is None:
            notes = (
                "No patient column: every row counts as a patient of its own. "
                "--patient-id COLUMN names it.",
                *notes,
            )
        return cls(
            table=table,
            root=root,
            inputs=found,
            label=spec,
            patient_ids=codes,
            name=name,
            patient_column=roles["patient_id"],
            site_column=roles["site"],
            date_column=roles["date"],
            split_column=roles["split"],
            notes=notes,
            feature_columns=features,
        )

    def __len__(self) -> int:
        return len(self.table)

    def subset(self, rows: Sequence[int] | Array) -> Cohort:
        """The cohort of some rows, in their order; patient codes stay."""
        rows = np.asarray(rows)
        return replace(
            self,
            table=self.table.iloc[rows].reset_index(drop=True),
            patient_ids=self.patient_ids[rows],
        )

    def read(self, row: int) -> dict[str, Any]:
        """The inputs of one row, by column.

        Raises:
            DataError: If a file is missing or broken; names row and column.
        """
        return {column: self._read(row, column, kind) for column, kind in self.inputs.items()}

    def read_mask(self, row: int) -> Any:
        """What the mask of one row holds, as its reader gives it; the label is a mask.

        Raises:
            DataError: If the file is missing or broken.
        """
        assert self.label is not None
        return self._read(row, self.label.columns[0], "mask")

    def mask_header(self, row: int) -> Header | None:
        """What the mask's file says about itself; None where it does not.

        Raises:
            DataError: As :meth:`read_mask`.
        """
        assert self.label is not None
        return self._header(row, self.label.columns[0], "mask")

    def _read(self, row: int, column: str, kind: str) -> Any:
        if kind == "table":
            return self.table.loc[row, list(self.feature_columns)]
        found = self._cell(row, column, kind)
        if isinstance(found, str):
            return found
        with self._located(row, column):
            return read(found)

    def _cell(self, row: int, column: str, kind: str) -> str | Path:
        """The text of a cell, or the path it names."""
        cell: Any = self.table.at[row, column]
        if pd.isna(cell):
            if kind == "text":
                return ""
            where = f"{self.name}, row {row}, column '{column}'"
            raise DataError("The cell is empty.", where=where, expected=f"a path to an {kind}")
        word = str(cell)
        is_text = kind == "text" and not word.lower().endswith(".txt")
        return word if is_text else self.root / word

    def header(self, row: int) -> dict[str, Header | None]:
        """What the files of a row say about themselves, by column; None where they do not.

        Raises:
            DataError: If a file is missing or its header broken; names row and column.
        """
        return {column: self._header(row, column, kind) for column, kind in self.inputs.items()}

    def _header(self, row: int, column: str, kind: str) -> Header | None:
        found = "" if kind == "table" else self._cell(row, column, kind)
        if isinstance(found, str):
            return None
        with self._located(row, column):
            return header(found)

    def content(self, row: int) -> str:
        """Fingerprint of what stands behind the inputs of a row; no file is decoded.

        Raises:
            DataError: If a file is missing.
        """
        parts = [self._bytes(row, column, kind) for column, kind in self.inputs.items()]
        return fingerprint_bytes(*chain.from_iterable(parts))

    def _bytes(self, row: int, column: str, kind: str) -> Iterator[bytes | str]:
        if kind == "table":
            yield repr(self.features().iloc[row].tolist())
            return
        found = self._cell(row, column, kind)
        if isinstance(found, str):
            yield found
            return
        with self._located(row, column):
            for part in parts_of(found):
                yield from (part.suffix, part.read_bytes())

    @contextmanager
    def _located(self, row: int, column: str) -> Iterator[None]:
        """Say in an error which cell names the file."""
        try:
            yield
        except DataError as error:
            cell: Any = self.table.at[row, column]
            raise DataError(
                error.found,
                where=f"{self.name}, row {row}, column '{column}': {cell}",
                expected=error.expected,
                next_step=error.next_step or "`galenic check` lists every unreadable file.",
            ) from None

    def targets(self) -> Array:
        """Labels of every row, as :func:`galenic.data.labels.encode` gives them.

        Raises:
            DataError: If there is no label.
        """
        if self.label is None:
            raise DataError(
                "The cohort has no label column.",
                where=self.name,
                expected=f"one of: {', '.join(list(self.table.columns)[:30])}",
                next_step="--label COLUMN",
            )
        return encode(self.label, self.table)

    def features(self) -> pd.DataFrame:
        """The columns of a table input."""
        return self.table[list(self.feature_columns)]

    @property
    def sites(self) -> pd.Series:
        """Site of each row as a word, missing where it is not known; there is a site column."""
        assert self.site_column is not None
        return tables.words(self.table[self.site_column])

    @property
    def fingerprint(self) -> str:
        """Hash of the manifest's columns that matter; the same rows give the same hash."""
        columns = [c for c in self.inputs if c in self.table] + list(self.feature_columns)
        columns += list(self.label.columns) if self.label else []
        # What decides in which part a sample is.
        parting = (self.site_column, self.date_column, self.split_column)
        columns += [c for c in parting if c is not None and c not in columns]
        hashed = pd.util.hash_pandas_object(self.table[columns].astype(str), index=False)
        return fingerprint_bytes(
            hashed.to_numpy().tobytes(), self.patient_ids.tobytes(), repr(self.label).encode()
        )


def _label_columns(label: str | Sequence[str] | None, columns: list[str]) -> list[str]:
    if label is None:
        found = manifest.column_for("label", None, columns)
        return [found] if found else []
    asked = [label] if isinstance(label, str) else list(label)
    for column in asked:
        manifest.require_column(column, columns)
    return asked


def _says_parts(values: pd.Series) -> bool:
    return {"train", "test"} <= set(manifest.parts_said(values).unique())


def _inputs(
    table: pd.DataFrame,
    root: Path,
    asked: Sequence[str] | None,
    taken: set[str],
    labels: list[str],
    name: str,
) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    for column in asked or ():
        manifest.require_column(column, table.columns)
    candidates = list(asked) if asked else [c for c in table.columns if c not in taken]
    overlap = set(candidates) & set(labels)
    if overlap:
        raise DataError(f"Column '{overlap.pop()}' is both input and label.", where=name)
    kinds = {column: manifest.detect(table[column], root) for column in candidates}
    files = {c: k for c, k in kinds.items() if k not in (None, "table")}
    for column in (c for c, kind in kinds.items() if kind in ("text", "table")):
        manifest.require_one_kind(table[column], root)
    if asked:
        features = [c for c in candidates if c not in files]
        found = dict(files) | ({"table": "table"} if features else {})
        return found, tuple(features), ()
    media = {c: k for c, k in files.items() if k != "text"}
    if media:
        # A column that only tells where a file came from names none that is here.
        return {c: k for c, k in media.items() if manifest.present(table[c], root)} or media, (), ()
    features = [c for c, k in kinds.items() if k == "table"]
    if files and not (len(features) > 5 * len(files)):
        return files, (), ()
    named = [c for c in features if manifest.names_rows(table[c])]
    if len(features) > len(named):
        notes = tuple(
            f"Column '{c}' is left out: it names rows rather than describes them. "
            "--inputs takes it in, --patient-id reads patients from it."
            for c in named
        )
        return {"table": "table"}, tuple(c for c in features if c not in named), notes
    raise DataError("No input column was found.", where=name, next_step="--inputs COLUMN")


def _patients(table: pd.DataFrame, column: str | None) -> Array:
    if column is None:
        return np.arange(len(table))
    values = table[column]
    if values.isna().any():
        row = int(np.flatnonzero(values.isna())[0])
        raise DataError(
            f"{int(values.isna().sum())} row(s) have no patient.",
            where=f"row {row}, column '{column}'",
            expected="a patient in every row",
        )
    # 1 and '1' are one patient.
    found = tables.words(values) if values.dtype == object else values
    return pd.factorize(found)[0].astype(np.int64)
