"""From files to the event table, or to a MEDS folder in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from galenic.core.errors import DataError, RunError
from galenic.core.files import atomic_folder
from galenic.core.progress import track
from galenic.data.events import checks, fhir, meds, rejection, tables
from galenic.data.events.mapping import PRESETS, Mapping, load
from galenic.data.events.staging import STAGED, Intake

REPORT = "rejections.csv"
# Bytes of input, as they lie on the disk, for which rows are finished at once.
SHARE = 1 << 28


@dataclass(frozen=True)
class Events:
    """What was read.

    Attributes:
        frame: The event table (:mod:`galenic.data.events.schema`).
        rejected: What was left out or kept in doubt (:mod:`galenic.data.events.rejection`).
        names: What codes mean, in words, where the source says it.
    """

    frame: pl.DataFrame
    rejected: pl.DataFrame
    names: dict[str, str]


@dataclass(frozen=True)
class Summary:
    """What :func:`convert` wrote.

    Attributes:
        patients: Number of patients.
        events: Number of events.
        sources: Number of events of each kind.
        rejected: The report, as in :class:`Events`.
    """

    patients: int
    events: int
    sources: dict[str, int]
    rejected: pl.DataFrame

    def to_dict(self) -> dict[str, object]:
        """All of it, in JSON's own types."""
        return {**vars(self), "rejected": self.rejected.to_dicts()}


def read(
    *sources: str | Path, mapping: str | Path | Mapping | None = None, timezone: str = "UTC"
) -> Events:
    """Read patients' events into memory.

    Args:
        sources: Files or folders: FHIR R4 bundles and NDJSON, a MEDS folder, or tables.
        mapping: For tables: a preset (`omop`, `mimic3`, ...), a YAML file, or a :class:`Mapping`.
        timezone: Where clocks without a zone hang, such as `Europe/Rome`.

    Raises:
        ConfigError: If the mapping or the time zone is wrong.
        DataError: If a source is missing or of no known kind, or nothing could be read.
    """
    intake = Intake(timezone)
    staged = [*_batches(sources, mapping, intake)]
    frames = [*_finished([staged], intake)]
    return Events(frames[0], _report(intake, len(frames[0])), intake.names)


def convert(
    sources: Sequence[str | Path],
    out: Path,
    *,
    mapping: str | Path | Mapping | None = None,
    timezone: str = "UTC",
    share: int = SHARE,
) -> Summary:
    """Read events and write them as MEDS, with `rejections.csv` beside.

    Rows wait on the disk, parted by patient, so that memory holds those of one part. Versions of
    one record that name two patients are then told apart only where both are in one part.

    Args:
        sources: As for :func:`read`.
        out: The new folder.
        mapping: As for :func:`read`.
        timezone: As for :func:`read`.
        share: Bytes of input for each part.

    Raises:
        ConfigError: As :func:`read`.
        DataError: As :func:`read`.
        RunError: If `out` exists.
    """
    if out.exists():
        raise RunError(
            f"The folder '{out.name}' exists already; nothing in it was changed.",
            where=str(out),
            next_step="Name another place with --out.",
        )
    intake = Intake(timezone)
    parts = 1 + sum(_bytes(Path(source)) for source in sources) // share
    with atomic_folder(out, digests=False) as folder, tempfile.TemporaryDirectory() as spill:
        _spill(_batches(sources, mapping, intake), Path(spill), parts)
        writer = meds.Writer(folder, intake.names)
        staged = (
            map(pl.read_parquet, sorted(part.iterdir())) for part in sorted(Path(spill).iterdir())
        )
        for frame in _finished(staged, intake):
            writer.add(frame)
        rejected = _report(intake, writer.events)
        writer.close()
        rejection.write(rejected, folder / REPORT)
    return Summary(writer.patients, writer.events, dict(writer.sources), rejected)


def _batches(
    sources: Sequence[str | Path], mapping: str | Path | Mapping | None, intake: Intake
) -> Iterator[pl.DataFrame]:
    chosen = mapping if mapping is None or isinstance(mapping, Mapping) else load(mapping)
    resources: dict[Path, None] = {}
    for path in dict.fromkeys(Path(source).resolve() for source in sources):
        if not path.exists():
            raise DataError(f"There is no '{path.name}'.", where=str(path.parent))
        if chosen is not None:
            yield from tables.batches(path, chosen, intake)
        elif meds.is_meds(path):
            yield from meds.batches(path, intake)
        else:
            resources |= dict.fromkeys(_resources(path))
    # All at once: the Medications of one file may be asked for in another.
    yield from fhir.batches(track(resources, "reading"), intake)


def _resources(path: Path) -> list[Path]:
    """The FHIR files of a source."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in found if file.name.lower().endswith(fhir.SUFFIXES)]
    if not files:
        raise DataError(
            f"'{path.name}' holds no events that are known without a mapping.",
            where=str(path.parent),
            expected=f"FHIR R4 ({', '.join(fhir.SUFFIXES)}), a MEDS folder, or tables",
            next_step="For tables: --mapping with a YAML file, or one of "
            + ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml"))),
        )
    return files


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _spill(batches: Iterable[pl.DataFrame], folder: Path, parts: int) -> None:
    """Write rows to `folder/<part>/`; all rows of a patient go to one part."""
    part = pl.col("patient_id").hash() % parts
    for number, batch in enumerate(batches):
        parted = batch.with_columns(part=part).partition_by("part", as_dict=True, include_key=False)
        for (name,), rows in parted.items():
            (folder / str(name)).mkdir(exist_ok=True)
            rows.write_parquet(folder / str(name) / f"{number:06}.parquet")


def _finished(parts: Iterable[Iterable[pl.DataFrame]], intake: Intake) -> Iterator[pl.DataFrame]:
    units = checks.Units()
    for part in parts:
        staged = pl.concat([pl.DataFrame(schema=STAGED), *part])
        frame = checks.finish(staged, intake.medications, intake.rejections)
        units.add(frame)
        yield frame
    units.report(intake.rejections)
    intake.report_zones()


def _report(intake: Intake, events: int) -> pl.DataFrame:
    """The report of rejections.

    Raises:
        DataError: If there are no events at all.
    """
    rejected = intake.rejections.frame()
    if not events:
        reasons = [f"{row['reason']} ({row['count']})" for row in rejected.head(3).to_dicts()]
        raise DataError("No event could be read.", where="; ".join(reasons))
    return rejected
