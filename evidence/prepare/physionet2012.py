"""Timed measurements of the PhysioNet Challenge 2012, as events and a manifest of stays.

    python evidence/prepare/physionet2012.py CHALLENGE TARGET

CHALLENGE holds `set-a/`, `Outcomes-a.txt` and, if there, set b, as PhysioNet gives them
(https://physionet.org/content/challenge-2012/, open access). TARGET gets `events/`,
shards of MEDS, and `stays-a.csv`, a manifest. The files know hours since admission and no dates:
every stay is admitted on the first of January 2000, and its cutoff is 48 hours later.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

from galenic.data.events import ordered, validate
from galenic.data.events.schema import SCHEMA

ADMITTED = pl.datetime(2000, 1, 1, time_zone="UTC")
# Known at admission, and measured by nobody over time.
STATIC = ("RecordID", "Age", "Gender", "Height", "ICUType")
VITAL = (
    "DiasABP", "FiO2", "GCS", "HR", "MAP", "MechVent", "NIDiasABP", "NIMAP", "NISysABP",
    "RespRate", "SaO2", "SysABP", "Temp", "Urine", "Weight",
)  # fmt: skip


def events_of(folder: Path) -> pl.DataFrame:
    """The event table of all stays below a folder of one file a stay."""
    parts = []
    for path in sorted(folder.glob("*.txt")):
        rows = pl.read_csv(path, schema_overrides={"Value": pl.Float64})
        parts.append(rows.with_columns(patient_id=pl.lit(path.stem)))
    rows = pl.concat(parts).filter(~pl.col("Parameter").is_in(STATIC))
    # -1 stands for unknown; nothing that is measured is negative.
    rows = rows.drop_nulls("Parameter").filter(pl.col("Value") >= 0)
    clock = pl.col("Time").str.split(":").list.eval(pl.element().cast(pl.Int64))
    since = pl.duration(hours=clock.list.get(0), minutes=clock.list.get(1))
    vital = pl.col("Parameter").is_in(VITAL)
    filled = rows.with_columns(
        time=(ADMITTED + since).cast(SCHEMA["time"]),
        code="Parameter",
        value="Value",
        source=pl.when(vital).then(pl.lit("vital")).otherwise(pl.lit("lab")),
        **{name: pl.lit(None, SCHEMA[name]) for name in ("text", "unit", "encounter_id", "end")},
    )
    return validate(ordered(filled))


def stays_of(file: Path) -> pl.DataFrame:
    """One row a stay: patient, cutoff and death in hospital."""
    return pl.read_csv(file).select(
        patient_id="RecordID",
        cutoff=pl.lit("2000-01-03T00:00:00Z"),
        label=pl.when(pl.col("In-hospital_death") == 1)
        .then(pl.lit("died"))
        .otherwise(pl.lit("alive")),
    )


def main(challenge: Path, target: Path) -> None:
    """Write both tables."""
    sets = [name for name in "abc" if (challenge / f"Outcomes-{name}.txt").is_file()]
    shards = target / "events" / "data"
    shards.mkdir(parents=True, exist_ok=True)
    for name in sets:
        events_of(challenge / f"set-{name}").write_parquet(shards / f"set-{name}.parquet")
        stays_of(challenge / f"Outcomes-{name}.txt").write_csv(target / f"stays-{name}.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
