"""A million events to tokens with their streams: against loops over groups of pandas."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import polars as pl

from benchmarks.harness import alternate, write_result
from galenic.data.events import ordered
from galenic.data.events.schema import BIRTH, SCHEMA
from galenic.data.events.tokens import STREAMS, Histories, encode
from galenic.data.events.vocabulary import (
    CLS,
    LONG,
    MONTH,
    REG,
    UNK,
    VE,
    VS,
    WEEK,
    Kind,
    TokenConfig,
    Vocabulary,
)

PATIENTS, VISITS, EVENTS = 10_000, 5, 20
REACH = 20
EPOCH = pd.Timestamp("2020-01-01", tz="UTC")
KINDS = {"lab": Kind.LAB, "medication": Kind.MED, "procedure": Kind.PROC}


def table() -> pl.DataFrame:
    """A million labs, drugs and procedures of fifty thousand stays."""
    draw = np.random.default_rng(0)
    stays, events = PATIENTS * VISITS, PATIENTS * VISITS * EVENTS
    gaps = draw.integers(1, 700 * 24, (PATIENTS, VISITS))
    hours = draw.integers(2, 400, (PATIENTS, VISITS))
    starts = (np.cumsum(gaps + hours, 1) - hours).ravel()
    ends = starts + hours.ravel()
    patient = [f"p{number:05d}" for number in np.repeat(np.arange(PATIENTS), VISITS)]
    encounters = _frame(
        patient_id=patient, time=starts, end=ends, encounter_id=range(stays), source="encounter",
        code="ENCOUNTER//IMP",
    )  # fmt: skip
    at = np.repeat(np.arange(stays), EVENTS)
    sources = np.array(list(KINDS))[draw.integers(0, 3, events)]
    codes = [f"{s}//{c}" for s, c in zip(sources, draw.integers(0, 300, events), strict=True)]
    values = np.where(sources == "lab", draw.normal(size=events), np.nan)
    items = _frame(
        patient_id=np.array(patient)[at], time=starts[at] + draw.integers(0, 400, events),
        encounter_id=at, source=sources, code=codes, value=values, unit="mg",
    ).with_columns(pl.col("value").fill_nan(None))  # fmt: skip
    births = _frame(
        patient_id=[f"p{number:05d}" for number in range(PATIENTS)],
        time=draw.integers(-80, -20, PATIENTS) * 8766, source="patient", code=BIRTH,
    )  # fmt: skip
    return ordered(pl.concat([encounters, items, births]))


def _frame(**columns: object) -> pl.DataFrame:
    """An event table; times are hours since 2015."""
    zero = datetime(2015, 1, 1, tzinfo=UTC)
    frame = pl.DataFrame(columns)
    hours = [name for name in ("time", "end") if name in frame.columns]
    since = {name: pl.lit(zero) + pl.duration(hours=pl.col(name)) for name in hours}
    frame = frame.with_columns(**since)
    missing = [pl.lit(None).alias(name) for name in SCHEMA if name not in frame.columns]
    return frame.with_columns(missing).select(pl.col(n).cast(t) for n, t in SCHEMA.items())


def grouped(frame: pd.DataFrame, vocabulary: Vocabulary) -> list[dict[str, list[float]]]:
    """The same histories: columns at once where pandas can, then a loop over groups of stays."""
    stays = frame[frame["source"] == "encounter"]
    stays = stays.sort_values(["patient_id", "time", "end", "encounter_id"])
    births = frame[frame["code"] == BIRTH].set_index("patient_id")["time"]
    columns = ["patient_id", "encounter_id", "time", "code", "value", "source"]
    items = frame.loc[frame["source"].isin(list(KINDS)), columns]
    limits = stays[["encounter_id", "time", "end"]].rename(columns={"time": "start"})
    items = items.merge(limits, on="encounter_id")
    items["hours"] = (
        items["time"].clip(items["start"], items["end"]) - items["start"]
    ).dt.total_seconds() / 3600
    items = items.sort_values(["encounter_id", "hours"], kind="stable")
    read = ["code", "value", "source", "hours"]
    of_stay = dict(iter(items.groupby("encounter_id", sort=False)[read]))
    bins = {binned.code: binned for binned in vocabulary.binned}
    found = []
    for patient, own in stays.groupby("patient_id", sort=False):
        birth, last_end, weeks = births[patient], None, 0
        history: dict[str, list[float]] = {name: [] for name in STREAMS}
        rows = zip(own["encounter_id"], own["time"], own["end"], strict=True)
        for visit, (name, start, end) in enumerate(rows, start=1):
            before, weeks = weeks, (start - EPOCH).days // 7
            if last_end is None:
                _add(history, CLS, Kind.CLS, 0, weeks, 0, 0, -2)
            else:
                _add(history, gap((start - last_end).days), Kind.GAP, 0, before, 0, visit - 1, -2)
            age = start.year - birth.year - ((start.month, start.day) < (birth.month, birth.day))
            beside = (age, weeks, 2 - visit % 2, visit)
            _add(history, VS, Kind.VS, *beside, -1)
            for code, value, source, hours in of_stay[name].itertuples(index=False, name=None):
                if np.isnan(value):
                    token = vocabulary.plain.get(code, UNK)
                elif code in bins:
                    token = bins[code].first + bisect_left(bins[code].edges, value)
                else:
                    token = UNK
                _add(history, token, KINDS[source], *beside, hours)
            _add(history, VE, Kind.VE, *beside, -2)
            _add(history, REG, Kind.REG, *beside, -2)
            last_end = end
        found.append(history)
    return found


def _add(history: dict[str, list[float]], *values: float) -> None:
    for stream, value in zip(history.values(), values, strict=True):
        stream.append(value)


def gap(days: int) -> int:
    """Token of a gap."""
    if days < 28:
        return WEEK + days // 7
    return MONTH + days // 30 if days <= 365 else LONG


def same(ours: Histories, theirs: list[dict[str, list[float]]]) -> str:
    """Check that all streams of all histories are equal."""
    assert len(ours) == len(theirs)
    for name, values in ours.streams.items():
        other = np.concatenate([history[name] for history in theirs])
        assert np.allclose(values, other, rtol=1e-6), name
    return f"all {len(ours.streams)} streams of {ours.offsets[-1]:,} tokens equal"


def main() -> None:
    """Measure and write the result."""
    events = table()
    vocabulary = Vocabulary.fit(events, TokenConfig())
    frame = events.to_pandas()
    checked = same(encode(events, vocabulary), grouped(frame, vocabulary))
    write_result(
        name="event_tokens",
        unit="s",
        times=alternate(
            lambda: encode(events, vocabulary), lambda: grouped(frame, vocabulary), warmup=0
        ),
        peer={"name": "group-by of pandas", "version": f"pandas {pd.__version__}"},
        reach=f"at most 1/{REACH}",
        met=lambda ratio: ratio <= 1 / REACH,
        same_result=checked,
    )


if __name__ == "__main__":
    main()
