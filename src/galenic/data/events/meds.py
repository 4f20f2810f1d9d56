"""MEDS, the Medical Event Data Standard (0.4): Parquet shards and their metadata.

Beside the columns of the standard the shards hold ours, so that a table comes back exactly as it
was: `numeric_value` of MEDS is a 32-bit number, and a patient a 64-bit one. Times are UTC.

Source: github.com/Medical-Event-Data-Standard/meds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from galenic.core.errors import DataError
from galenic.core.files import atomic_folder, atomic_json
from galenic.core.provenance import versions
from galenic.data.events import rejection
from galenic.data.events.schema import BIRTH, DEATH, ENCOUNTER, GENDER
from galenic.data.events.staging import STAGED, Intake

VERSION = "0.4.0"
_DATASET = Path("metadata", "dataset.json")
# Subjects whose id is no number get one from here on.
_NAMED = 1 << 62
_SPLITS = ("train",) * 8 + ("tuning", "held_out")
# The kinds of codes that MEDS converters write.
_SOURCES = {
    BIRTH: "patient",
    DEATH: "patient",
    GENDER: "patient",
    ENCOUNTER: "encounter",
    "LAB//": "lab",
    "VITAL//": "vital",
    "MEDICATION//": "medication",
    "PROCEDURE//": "procedure",
    "DIAGNOSIS//": "condition",
}


def is_meds(path: Path) -> bool:
    """Whether a folder is laid out as MEDS."""
    return (path / _DATASET).is_file() or any((path / "data").rglob("*.parquet"))


def batches(folder: Path, intake: Intake) -> Iterator[pl.DataFrame]:
    """Staged rows of a MEDS folder, a shard at a time.

    Raises:
        DataError: If a shard cannot be read or lacks a column.
    """
    for path in sorted((folder / "data").rglob("*.parquet")):
        try:
            shard = pl.read_parquet(path)
            rows = _staged(shard, intake.label(path))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"The shard cannot be read: {str(error).splitlines()[0]}.",
                where=path.name,
                expected="subject_id, time, code, numeric_value",
            ) from None
        for name, reason in (("patient_id", rejection.NO_PATIENT), ("code", rejection.NO_CODE)):
            intake.rejections.add_rows(rows.filter(pl.col(name).is_null()), reason)
        yield rows.drop_nulls(["patient_id", "code"])


def _staged(shard: pl.DataFrame, label: str) -> pl.DataFrame:
    """A shard under our names; what only we write is filled in where another wrote it."""
    code = pl.col("code").cast(pl.String)
    source = pl.lit("other")
    for prefix, name in _SOURCES.items():
        source = pl.when(code.str.starts_with(prefix)).then(pl.lit(name)).otherwise(source)
    instead = {
        "patient_id": pl.col("subject_id").cast(pl.String),
        "value": pl.col("numeric_value"),
        "text": pl.col("text_value") if "text_value" in shard.columns else pl.lit(None),
        "source": source,
        "file": pl.lit(label),
        "place": pl.int_range(1, pl.len() + 1),
        "kind": pl.lit("MEDS"),
    }
    columns = {
        name: pl.col(name) if name in shard.columns else instead.get(name, pl.lit(None))
        for name in STAGED
    }
    for name in ("time", "end"):
        kind = shard.schema.get(name)
        if isinstance(kind, pl.Datetime) and kind.time_zone is None:
            columns[name] = columns[name].dt.replace_time_zone("UTC")
    return shard.select(columns[name].cast(kind).alias(name) for name, kind in STAGED.items())


class Writer:
    """Writes event tables as the shards of a MEDS folder, one after another.

    Args:
        folder: The folder to fill.
        names: What codes mean, in words.

    Attributes:
        patients: Number of patients so far.
        events: Number of events so far.
        sources: Number of events of each kind so far.
    """

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self._folder, self._names = folder, names
        self._codes: set[str] = set()
        self._subjects: dict[int, str] = {}
        self.shards = 0
        self.sources: Counter[str] = Counter()
        (folder / "data").mkdir(parents=True)
        (folder / "metadata").mkdir()

    @property
    def patients(self) -> int:
        return len(self._subjects)

    @property
    def events(self) -> int:
        return self.sources.total()

    def add(self, frame: pl.DataFrame) -> None:
        """Write an event table, which holds all events of its patients, as a shard."""
        patients = frame["patient_id"].unique(maintain_order=True)
        numbers = [subject_id(patient) for patient in patients]
        self._subjects |= dict(zip(numbers, patients, strict=True))
        subjects = pl.DataFrame(
            {"patient_id": patients, "subject_id": pl.Series(numbers, dtype=pl.Int64)}
        )
        shard = frame.join(subjects, on="patient_id", how="left", maintain_order="left").select(
            "subject_id",
            pl.col("time").dt.replace_time_zone(None),
            "code",
            pl.col("value").cast(pl.Float32).alias("numeric_value"),
            pl.col("text").alias("text_value"),
            "value",
            "unit",
            "source",
            "encounter_id",
            pl.col("end").dt.replace_time_zone(None),
            "patient_id",
        )
        shard.write_parquet(self._folder / "data" / f"{self.shards}.parquet")
        self.shards += 1
        self._codes |= set(frame["code"].unique())
        self.sources.update(dict(frame["source"].value_counts().iter_rows()))

    def close(self) -> None:
        """Write the metadata."""
        metadata = self._folder / "metadata"
        codes = sorted(self._codes)
        pl.DataFrame(
            {
                "code": codes,
                "description": [self._names.get(code) for code in codes],
                "parent_codes": [None] * len(codes),
            },
            schema={
                "code": pl.String(),
                "description": pl.String(),
                "parent_codes": pl.List(pl.String()),
            },
        ).write_parquet(metadata / "codes.parquet")
        numbers = sorted(self._subjects)
        pl.DataFrame(
            {"subject_id": numbers, "split": [_split(number) for number in numbers]},
            schema={"subject_id": pl.Int64(), "split": pl.String()},
        ).write_parquet(metadata / "subject_splits.parquet")
        atomic_json(
            self._folder / _DATASET,
            {
                "dataset_name": "",
                "etl_name": "galenic",
                "etl_version": versions().get("galenic", ""),
                "meds_version": VERSION,
            },
        )


def write(frame: pl.DataFrame, folder: Path, names: dict[str, str] | None = None) -> Path:
    """Write one event table as a MEDS folder of one shard.

    Args:
        frame: The event table.
        folder: The new folder.
        names: What codes mean, in words.
    """
    with atomic_folder(folder, digests=False) as made:
        writer = Writer(made, names or {})
        writer.add(frame)
        writer.close()
    return folder


def subject_id(patient: str) -> int:
    """The number of a patient: its own where the id is one, and else one from its digest."""
    if patient.isascii() and patient.isdigit() and str(int(patient)) == patient:
        number = int(patient)
        if number < _NAMED:
            return number
    return _NAMED + int.from_bytes(_digest(patient)) % _NAMED


def _split(subject: int) -> str:
    """The split of a subject, which stays when others come or go."""
    return _SPLITS[_digest(str(subject))[0] % len(_SPLITS)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
