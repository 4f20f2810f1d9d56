"""Tasks: labels against double loops, boundaries to the second, and nothing seen from the future."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galenic.core.errors import ConfigError
from galenic.data.events import definitions, label, ordered, read, visible
from galenic.data.events.definitions import Definition
from galenic.data.events.schema import SCHEMA

ZERO = datetime(2020, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PRESETS = ["mortality", "hospital_mortality", "readmission", "length_of_stay", "conditions"]


def row(
    code: str, time: datetime | None, end: datetime | None = None, **more: object
) -> dict[str, object]:
    source = "encounter" if code.startswith("ENCOUNTER") else "other"
    return {"patient_id": "p", "code": code, "time": time, "end": end, "source": source, **more}


def frame_of(*rows: dict[str, object]) -> pl.DataFrame:
    return ordered(pl.DataFrame(list(rows), schema=SCHEMA))


def labels_of(task: str, *rows: dict[str, object], **changes: str) -> list[int]:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    # Someone else is seen for long enough.
    later = row("x", ZERO + 3000 * DAY, patient_id="q")
    return label(frame_of(*rows, later), definitions.load(task, overrides))["label"].to_list()


# Hours on a coarse grid, so that cutoffs, starts and ends meet.
HOURS = st.integers(0, 60 * 24).map(lambda hours: ZERO + (hours // 8 * 8) * HOUR)
EVENTS = st.builds(
    lambda patient, code, time, length, static: row(
        code,
        None if static and code == "SEX" else time,
        None if length is None else time + length * DAY,
        patient_id=patient,
    ),
    st.sampled_from("pq"),
    st.sampled_from(["ENCOUNTER//IMP", "ENCOUNTER//AMB", "LAB//1", "ICD10CM//I10", "MEDS_DEATH", "SEX"]),
    HOURS,
    st.none() | st.integers(0, 12),
    st.booleans(),
)  # fmt: skip
TABLES = st.lists(EVENTS, min_size=1, max_size=25).map(lambda rows: frame_of(*rows))


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(PRESETS))
def test_nothing_at_or_after_the_cutoff_is_visible(frame: pl.DataFrame, task: str) -> None:
    samples = label(frame, definitions.load(task))
    seen = visible(frame, samples)
    assert (seen["time"].is_null() | (seen["time"] < seen["cutoff"])).all()
    assert (seen["end"].is_null() | (seen["end"] < seen["cutoff"])).all()
    for patient, cutoff, _ in samples.iter_rows():
        # Whatever is rewritten from the cutoff on, the same is seen.
        past = frame.filter(pl.col("time").is_null() | (pl.col("time") < cutoff))
        past = past.with_columns(end=pl.when(pl.col("end") < cutoff).then("end"))
        one = samples.filter((pl.col("patient_id") == patient) & (pl.col("cutoff") == cutoff))
        assert visible(past, one).equals(visible(frame, one))
        mine = past.filter(pl.col("patient_id") == patient)
        assert visible(frame, one).drop("cutoff").equals(ordered(mine))


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_readmissions_are_those_of_a_double_loop(frame: pl.DataFrame) -> None:
    rows = frame.to_dicts()
    last = max((r["time"] for r in rows if r["time"]), default=None)
    slow = {}
    for stay in rows:
        if stay["source"] != "encounter" or stay["end"] is None:
            continue
        cutoff, until = stay["end"] + timedelta(seconds=1), stay["end"] + 30 * DAY
        mine = [r for r in rows if r["patient_id"] == stay["patient_id"] and r["time"]]
        if any(r["code"] == "MEDS_DEATH" and r["time"] < cutoff for r in mine):
            continue
        again = any(r["source"] == "encounter" and cutoff <= r["time"] <= until for r in mine)
        if again or until <= last:
            slow[stay["patient_id"], cutoff] = int(again)
    fast = label(frame, definitions.load("readmission"))
    assert {(patient, cutoff): one for patient, cutoff, one in fast.iter_rows()} == slow


@pytest.mark.parametrize(
    ("gap", "positive"),
    [
        (timedelta(seconds=1), 1),
        (27 * DAY, 1),
        (28 * DAY, 1),
        (29 * DAY, 1),
        (30 * DAY, 1),
        (30 * DAY + timedelta(seconds=1), 0),
        (59 * DAY, 0),
    ],
)
def test_a_readmission_counts_every_day_of_a_month_and_no_more(
    gap: timedelta, positive: int
) -> None:
    first = row("ENCOUNTER//IMP", ZERO, ZERO + DAY)
    second = row("ENCOUNTER//IMP", ZERO + DAY + gap, ZERO + DAY + gap + HOUR)
    assert labels_of("readmission", first, second) == [positive, 0]


def test_a_transfer_at_the_moment_of_discharge_is_no_readmission() -> None:
    first = row("ENCOUNTER//IMP", ZERO, ZERO + DAY)
    assert labels_of("readmission", first, row("ENCOUNTER//IMP", ZERO + DAY, ZERO + 2 * DAY)) == [
        0,
        0,
    ]


def test_a_gap_after_the_cutoff_does_not_count() -> None:
    stays = [row("ENCOUNTER//IMP", ZERO + n * DAY, ZERO + (n + 1) * DAY) for n in (0, 3)]
    assert labels_of("readmission", *stays, label__since="'cutoff + 2d'") == [0, 0]
    assert labels_of("readmission", *stays, label__since="'cutoff + 1d'") == [1, 0]


@pytest.mark.parametrize("events", [0, 3, 400])
def test_the_length_of_a_stay_is_elapsed_time_and_not_a_count_of_events(events: int) -> None:
    labs = [row("LAB//1", ZERO + HOUR, value=float(n)) for n in range(events)]
    for length, positive in ((7 * DAY, 1), (7 * DAY - timedelta(seconds=1), 0)):
        stay = row("ENCOUNTER//IMP", ZERO, ZERO + length)
        assert labels_of("length_of_stay", stay, *labs) == [positive]


def test_a_stay_that_is_over_or_open_has_no_length_to_predict() -> None:
    over = row("ENCOUNTER//IMP", ZERO, ZERO + 23 * HOUR)
    assert labels_of("length_of_stay", over, row("ENCOUNTER//IMP", ZERO + 3 * DAY)) == []


@pytest.mark.parametrize(
    ("days", "expected"), [(0.5, []), (1, []), (1.1, [1]), (33, [1]), (33.1, [0])]
)
def test_mortality_asks_for_32_days_after_the_last_discharge(
    days: float, expected: list[int]
) -> None:
    stays = [row("ENCOUNTER//IMP", ZERO - 9 * DAY, ZERO - 8 * DAY), row("ENCOUNTER//IMP", ZERO, ZERO + DAY)]  # fmt: skip
    assert labels_of("mortality", *stays, row("MEDS_DEATH", ZERO + days * DAY)) == expected


def test_who_left_the_data_early_is_no_negative() -> None:
    stay = row("ENCOUNTER//IMP", ZERO, ZERO + DAY)
    frame = frame_of(stay, row("x", ZERO + 30 * DAY, patient_id="q"))
    judged = definitions.judge(frame, definitions.load("readmission"))
    assert judged["excluded"].to_list() == ["unfollowed"]


@pytest.mark.parametrize(
    ("task", "hours", "found"),
    [
        # In hospital: the first 24 hours are over, or are not.
        ("length_of_stay", 25, [None]),
        ("length_of_stay", 23, []),
        ("hospital_mortality", 49, [None]),
        ("hospital_mortality", 47, []),
        # Nobody knows when the stay ends, from when on one would ask.
        ("readmission", 49, []),
    ],
)
def test_who_is_still_in_hospital_is_asked_what_nobody_knows_yet(
    task: str, hours: int, found: list[int | None]
) -> None:
    frame = frame_of(row("ENCOUNTER//IMP", ZERO), row("x", ZERO + hours * HOUR, patient_id="q"))
    assert label(frame, definitions.load(task)).is_empty()
    asked = definitions.questions(frame, definitions.load(task))
    assert asked["label"].to_list() == found
    assert asked.schema == label(frame, definitions.load(task)).schema
    dead = row("MEDS_DEATH", ZERO + HOUR)
    assert definitions.questions(
        ordered(pl.concat([frame, frame_of(dead)])), definitions.load(task)
    ).is_empty()


def test_who_has_just_left_is_asked_whether_they_come_back() -> None:
    stays = [row("ENCOUNTER//IMP", ZERO + n * DAY, ZERO + (n + 3) * DAY) for n in (0, 20)]
    asked = definitions.questions(frame_of(*stays), definitions.load("readmission"))
    assert asked["label"].to_list() == [1, None]
    later = row("x", ZERO + 60 * DAY, patient_id="q")
    asked = definitions.questions(frame_of(*stays, later), definitions.load("readmission"))
    assert asked["label"].to_list() == [1, 0]


@settings(max_examples=40, deadline=None)
@given(TABLES, st.sampled_from(PRESETS))
def test_what_has_an_answer_is_asked_as_in_training(frame: pl.DataFrame, task: str) -> None:
    definition = definitions.load(task)
    asked = definitions.questions(frame, definition)
    assert asked.filter(pl.col("label").is_not_null()).equals(label(frame, definition))
    assert not asked.select("patient_id", "cutoff").is_duplicated().any()


def test_a_condition_that_is_known_is_not_asked_for() -> None:
    stay = row("ENCOUNTER//IMP", ZERO, ZERO + DAY)
    for code in ("ICD10CM//I10", "ICD10//I13.2", "ICD9CM//4019", "SNOMED//59621000"):
        assert labels_of("conditions", stay, row(code, ZERO + 100 * DAY)) == [1]
        assert labels_of("conditions", stay, row(code, ZERO)) == []
    assert labels_of("conditions", stay, row("ICD10CM//I20", ZERO + 100 * DAY)) == [0]
    diabetes = {"label__codes__regex": "'ICD10CM//E1[0-4].*'"}
    assert labels_of("conditions", stay, row("ICD10CM//E11.9", ZERO + 9 * DAY), **diabetes) == [1]


@pytest.mark.parametrize(("which", "count"), [("first", 1), ("last", 1), ("each", 3)])
def test_anchors_are_chosen(which: str, count: int) -> None:
    stays = [row("ENCOUNTER//IMP", ZERO + n * DAY, ZERO + (n + 3) * DAY) for n in range(3)]
    frame = frame_of(*stays)
    samples = label(frame, definitions.load("length_of_stay", [f"anchor.which={which}"]))
    assert len(samples) == count
    place = -1 if which == "last" else 0
    assert samples["cutoff"][place] == stays[place]["time"] + DAY


def test_a_month_of_a_real_source(real_data: Path) -> None:
    frame = read(real_data / "mimic3_demo_tables", mapping="mimic3").frame
    stays = frame.filter(pl.col("source") == "encounter")
    long = (stays["end"] - stays["time"] >= 7 * DAY).sum()
    judged = definitions.judge(frame, definitions.load("length_of_stay", ["exclude=[]"]))
    assert (len(judged), judged["label"].sum()) == (129, long)
    # The stays that end in death cannot be followed by another.
    judged = definitions.judge(frame, definitions.load("readmission"))
    assert (judged["excluded"] == "dead").sum() >= 39


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("cutoff=cutoff + 1d", "cutoff"),
        ("cutoff=end + 1 fortnight", "cutoff"),
        ("label.until=whenever", "until"),
        ("label.codes.regex='('", "regular expression"),
        ("anchor.codes={}", "prefix, regex or exact"),
        ("exclude=[alive]", "exclude"),
        ("anker=last", "anchor"),
    ],
)
def test_a_wrong_definition_names_the_key(override: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        definitions.load("readmission", [override])


def test_a_definition_is_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((definitions.PRESETS / "mortality.yaml").read_text())
    assert isinstance(definitions.load(path), Definition)
    assert definitions.load(path) == definitions.load("mortality")
