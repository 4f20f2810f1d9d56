"""Rules that need all rows of a patient: each fault is one row of the report."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from galenic.core.errors import DataError
from galenic.data.events import checks, empty, ordered, rejection, validate
from galenic.data.events.rejection import Rejections
from galenic.data.events.staging import STAGED

BORN = datetime(1980, 1, 1, tzinfo=UTC)
DIED = datetime(2020, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def row(code: str, time: datetime | None, **fields: object) -> dict[str, object]:
    return {"patient_id": "p", "source": "other", "file": "f", "kind": "K", "code": code,
            "time": time, **fields}  # fmt: skip


def finished(*rows: dict[str, object]) -> tuple[list[str], dict[str, int]]:
    """Codes that stay, and the count of each reason; the order of the rows changes neither."""
    made = []
    for seed in range(3):
        mixed = random.Random(seed).sample(rows, len(rows))
        full = [{"place": place, **one} for place, one in enumerate(mixed)]
        rejections = Rejections()
        frame = checks.finish(pl.DataFrame(full, schema=STAGED), {}, rejections)
        reasons = dict(rejections.frame().select("reason", "count").iter_rows())
        made.append((sorted(validate(frame)["code"]), reasons))
    assert made[0] == made[1] == made[2]
    return made[0]


def test_nothing_happens_more_than_a_day_outside_of_a_life() -> None:
    life = [row("MEDS_BIRTH", BORN), row("MEDS_DEATH", DIED)]
    codes, told = finished(
        *life,
        row("first", BORN - DAY),
        row("early", BORN - DAY - timedelta(seconds=1)),
        row("last", DIED + DAY),
        row("late", DIED + DAY + timedelta(seconds=1)),
        row("static", None),
        row("other", BORN - 400 * DAY, patient_id="q"),
    )
    assert codes == ["MEDS_BIRTH", "MEDS_DEATH", "first", "last", "other", "static"]
    assert told == {rejection.UNBORN: 1, rejection.PAST_DEATH: 1}


def test_a_death_before_the_birth_takes_both_dates() -> None:
    codes, told = finished(row("MEDS_BIRTH", DIED), row("MEDS_DEATH", BORN), row("x", BORN))
    assert codes == ["x"]
    assert told == {rejection.DEATH_FIRST: 2}


def test_a_death_on_the_day_of_the_birth_stays() -> None:
    codes, told = finished(row("MEDS_BIRTH", BORN), row("MEDS_DEATH", BORN - timedelta(hours=9)))
    assert (codes, told) == (["MEDS_BIRTH", "MEDS_DEATH"], {})


def test_the_first_day_of_death_counts_with_its_hour() -> None:
    day = DIED.replace(hour=0)
    rejections = Rejections()
    deaths = [
        row("MEDS_DEATH", time, place=n) for n, time in enumerate([day, DIED + 3 * DAY, DIED])
    ]
    frame = checks.finish(pl.DataFrame(deaths, schema=STAGED), {}, rejections)
    assert frame["time"].to_list() == [DIED]
    told = dict(rejections.frame().select("reason", "count").iter_rows())
    assert told == {rejection.SEVERAL: 1, rejection.TOLD_AGAIN: 1}


def test_an_encounter_that_ends_before_it_starts_is_open() -> None:
    stay = {"source": "encounter", "file": "f"}
    codes, told = finished(
        row("ENCOUNTER//A", DIED, end=DIED - DAY, **stay),
        row("ENCOUNTER//B", DIED, **stay),
        row("ENCOUNTER//C", DIED, end=DIED, **stay),
        row("condition", DIED, source="condition"),
    )
    assert len(codes) == 4
    assert told == {rejection.NEGATIVE: 1, rejection.OPEN: 2}


def test_a_death_without_a_date_is_counted() -> None:
    assert finished(row("MEDS_DEATH", None), row("x", DIED)) == (["x"], {rejection.NO_TIME: 1})


def test_units_that_disagree_are_named_by_their_code() -> None:
    rows = [row("sodium", DIED, value=1.0, unit=unit) for unit in ["g", "g", "g", "mg", "lb"]]
    rows += [row("same", DIED, value=1.0, unit="g"), row("words", DIED, unit="x")]
    rows += [row("words", DIED, unit="y")]
    full = pl.DataFrame([{"place": 1, **one} for one in rows], schema=STAGED)
    rejections, units = Rejections(), checks.Units()
    for part in (full[:3], full[3:]):
        units.add(checks.finish(part, {}, rejections))
    units.report(rejections)
    told = rejections.frame().select("reason", "kept", "count").rows()
    assert told == [(f"{rejection.UNITS}: sodium in g, lb, mg", True, 2)]


def test_a_report_shows_no_odd_name_of_a_kind() -> None:
    rejections = Rejections()
    rejections.add("x", kind="Jane Doe, born 1980-01-01")
    rejections.add("x", kind=["Jane"])
    assert rejections.frame()["kind"].to_list() == ["?"]


def test_validate_names_what_is_wrong() -> None:
    frame = ordered(
        pl.DataFrame([row("b", DIED), row("a", BORN)], schema=STAGED).select(empty().columns)
    )
    assert validate(frame).equals(frame)
    for wrong, found in (
        (frame.drop("unit"), "unit .missing."),
        (frame.with_columns(pl.col("value").cast(pl.Float32)), "value .Float32."),
        (frame.with_columns(surplus=1), "surplus"),
        (frame.with_columns(source=pl.lit("labs")), "labs"),
        (frame.with_columns(code=pl.lit(None, pl.String)), "2 events have no code"),
        (frame.reverse(), "out of order"),
    ):
        with pytest.raises(DataError, match=found):
            validate(wrong)
