"""Windows, channels, grids and notes, against plain loops."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galenic.core.errors import DataError
from galenic.data.events import ordered, validate
from galenic.data.events.channels import Channels
from galenic.data.events.grid import carried_forward, summaries
from galenic.data.events.schema import SCHEMA
from galenic.data.events.series import Series, last_notes, starts_of, windows

START = datetime(2026, 1, 1, tzinfo=UTC)
TRAIN = np.arange(2)


def event(patient: str, hour: float | None, code: str, value: float | None = None, **more: Any):
    time = None if hour is None else START + timedelta(hours=hour)
    empty = dict.fromkeys(SCHEMA)
    found = {"patient_id": patient, "time": time, "code": code, "value": value, "source": "lab"}
    return empty | found | more


def table(*events: dict[str, Any]) -> pl.DataFrame:
    return validate(ordered(pl.DataFrame(list(events), schema=SCHEMA)))


def stays(*pairs: tuple[str, float]) -> pl.DataFrame:
    rows = [{"patient_id": p, "cutoff": START + timedelta(hours=h)} for p, h in pairs]
    return pl.DataFrame(rows, schema={"patient_id": pl.String, "cutoff": SCHEMA["time"]})


def test_a_window_begins_with_its_start_and_ends_before_its_cutoff() -> None:
    events = table(
        event("a", -0.5, "na", 1.0),
        event("a", 0, "na", 2.0),
        event("a", 23.99, "na", 3.0),
        event("a", 24, "na", 4.0),
        event("a", None, "na", 5.0),
        event("a", 25, "NOTE", text="late", source="note"),
        event("c", 3, "na", 6.0),
    )
    found, counts = windows(events, stays(("a", 24), ("b", 24), ("a", 48)), 24)
    assert found.select("stay", "hours", "value").rows() == [
        (0, 0.0, 2.0), (0, pytest.approx(23.99), 3.0), (2, 0.0, 4.0), (2, 1.0, None)
    ]  # fmt: skip
    assert counts["events_inside"] == 3 and counts["events_untimed"] == 2
    assert counts["events_before"] == 1 + 3 and counts["events_after"] == 1
    assert (counts["notes_inside"], counts["notes_after"]) == (1, 1)
    assert counts["stays"] == 3 and counts["stays_of_unknown_patients"] == 1


def test_what_is_after_the_cutoff_changes_nothing() -> None:
    known = [event("a", h, "na", float(h)) for h in range(24)]
    known += [event("b", 2, "na", 7.0), event("a", 5, "NOTE", text="well", source="note")]
    future = [event("a", 30, "na", 1e9), event("a", 24.5, "NOTE", text="died", source="note")]
    asked = stays(("a", 24), ("b", 24))
    before, after = (windows(table(*rows), asked, 24)[0] for rows in (known, known + future))
    assert before.equals(after)


def test_channels_are_learnt_from_training_stays_alone() -> None:
    events = table(
        event("a", 1, "na", 130.0), event("a", 2, "na", 150.0), event("b", 1, "na", 140.0),
        event("c", 1, "na", 1e6), event("c", 1, "k", 4.0), event("a", 3, "flat", 5.0),
        event("b", 4, "flat", 5.0), event("a", 1, "drug", 1.0, source="medication"),
    )  # fmt: skip
    found, _ = windows(events, stays(("a", 24), ("b", 24), ("c", 24)), 24)
    channels = Channels.fit(found, TRAIN)
    assert channels.names == ("flat", "na")
    assert channels.mean == (5.0, 140.0)
    assert channels.spread == (1.0, pytest.approx(np.std([130, 150, 140])))
    series, _ = channels.series(found, 3)
    mine = series.rows(0)
    np.testing.assert_allclose(
        series.values[mine][:, 1], [-10 / channels.spread[1], 10 / channels.spread[1], 0], rtol=1e-6
    )
    assert series.mask[mine].tolist() == [[False, True], [False, True], [True, False]]
    assert series.hours[mine].tolist() == [1, 2, 3]
    assert Channels.fit(found, TRAIN, names=["drug"]).mean == (1.0,)


def test_coded_answers_are_ordinal_and_unknown_ones_counted() -> None:
    answers = ["none", "to pain", "to speech"]
    events = table(
        *(event("a", h, "eyes", text=word) for h, word in enumerate(answers)),
        event("b", 1, "eyes", text="to pain"),
        event("b", 1, "eyes", text="to speech"),
        event("b", 2, "eyes", text="winking"),
        event("b", 3, "eyes", text=None),
    )
    found, _ = windows(events, stays(("a", 24), ("b", 24)), 24)
    channels = Channels.fit(found, TRAIN, levels={"eyes": answers})
    measured, counts = channels.measured(found)
    # Of two answers at one time the highest counts.
    assert measured["number"].to_list() == [0, 1, 2, 2]
    assert counts == {"measured": 4, "duplicates": 1, "without_number": 0, "unknown_answers": 2}
    assert Channels.fit(found, np.array([0])).levels == {"eyes": tuple(sorted(answers))}


def test_several_values_at_one_time_are_averaged_and_counted() -> None:
    events = table(
        event("a", 1, "na", 130.0), event("a", 1, "na", 150.0), event("a", 2, "na", float("nan")),
        event("a", 3, "na", None), event("a", 3, "na", float("inf")),
    )  # fmt: skip
    found, _ = windows(events, stays(("a", 24)), 24)
    measured, counts = Channels.fit(found, np.array([0])).measured(found)
    assert measured["number"].to_list() == [140.0]
    assert counts == {"measured": 1, "duplicates": 1, "without_number": 3, "unknown_answers": 0}


def test_channels_come_back_from_their_state_and_from_their_parts() -> None:
    events = table(
        event("a", 1, "na", 130.0, unit="mmol/L"), event("a", 2, "na", 150.1, unit="mmol/L"),
        event("a", 1, "urea", 5.0), event("a", 1, "eyes", text="to pain"),
        event("b", 1, "eyes", text="none"),
    )  # fmt: skip
    found, _ = windows(events, stays(("a", 24), ("b", 24)), 24)
    channels = Channels.fit(found, TRAIN)
    assert channels.units == {"na": "mmol/L"} and set(channels.levels) == {"eyes"}
    state = json.loads(json.dumps(channels.state()))
    assert Channels.from_state(state) == channels
    parts = [channels.of([2]), channels.of([0, 1])]
    assert parts[0].units == {} and Channels.joined(parts) == channels.of([2, 0, 1])
    assert Channels.from_state({k: v for k, v in state.items() if k != "units"}).units == {}


def test_a_channel_in_another_unit_than_in_training_is_named() -> None:
    def seen(**units: str | None) -> pl.DataFrame:
        rows = [event("a", 1, code, 1.0, unit=unit) for code, unit in units.items()]
        return windows(table(*rows), stays(("a", 24)), 24)[0]

    channels = Channels.fit(seen(na="mmol/L", urea=None), np.array([0]))
    # A unit that one of both does not tell is no other one; nor is that of another channel.
    channels.require_units(seen(na=None, urea="mg/dL", iron="g"))
    channels.require_units(seen(na="mmol/L"))
    with pytest.raises(DataError, match="'na' comes in mEq/L, and in training in mmol/L"):
        channels.require_units(seen(na="mEq/L", urea="mg/dL"))


@pytest.mark.parametrize(
    ("names", "events", "words"),
    [
        (["nah"], [event("a", 1, "na", 1.0)], "'nah' was not measured.*'na'"),
        ([], [event("a", 1, "x", 1.0, source="other")], "No channel"),
        ([], [event("a", 1, "na", 1.0, unit="mg/dL"), event("a", 2, "na", 1.0, unit="mmol/L")],
         "'na' comes in 2 units: mg/dL, mmol/L"),
        (["na"], [event("a", 1, "na", float("inf"))], "no number"),
    ],
)  # fmt: skip
def test_channels_that_cannot_be_are_named(names, events, words: str) -> None:
    found, _ = windows(table(*events), stays(("a", 24)), 24)
    with pytest.raises(DataError, match=words):
        Channels.fit(found, np.array([0]), names=names)


def drawn(seed: int, count: int, channels: int = 3, hours: float = 6.0) -> Series:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, 7, count)
    stays = np.repeat(np.arange(count), lengths)
    moments = np.concatenate([np.sort(draw.uniform(0, hours, n)) for n in lengths] or [[]])
    mask = draw.random((len(stays), channels)) < 0.5
    # Zero is a value like any other.
    values = np.where(mask, draw.integers(-1, 2, mask.shape), 0).astype(np.float32)
    return Series(values, mask, moments.astype(np.float32), starts_of(stays, count))


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9))
def test_forward_fill_is_the_plain_loop(seed: int, count: int, steps: int) -> None:
    series, hours, default = drawn(seed, count), 6.0, -9.0
    values, observed = carried_forward(series, hours, steps, default)
    for stay in range(count):
        rows = range(series.starts[stay], series.starts[stay + 1])
        for channel in range(series.mask.shape[1]):
            for step in range(steps):
                end = (step + 1) * hours / steps
                last, fresh = default, False
                for row in rows:
                    at = float(series.hours[row])
                    if series.mask[row, channel] and at < end:
                        last = series.values[row, channel]
                        fresh = at >= end - hours / steps
                assert values[stay, step, channel] == last
                assert observed[stay, step, channel] == fresh


def test_forward_fill_at_the_start_over_gaps_and_within_an_hour() -> None:
    values = np.array([[1.0], [2.0], [0.0]], np.float32)
    series = Series(
        values, np.ones((3, 1), bool), np.array([1.2, 1.7, 4.0], np.float32), np.array([0, 3, 3])
    )
    filled, observed = carried_forward(series, 6, 6, default=7.0)
    # Nothing before hour 1; the later of two in one hour; zero is carried on as a measurement.
    assert filled[0, :, 0].tolist() == [7, 2, 2, 2, 0, 0]
    assert observed[0, :, 0].tolist() == [False, True, False, False, True, False]
    assert filled[1, :, 0].tolist() == [7] * 6 and not observed[1].any()


@given(st.integers(0, 10_000))
def test_summaries_are_the_plain_loop(seed: int) -> None:
    series = drawn(seed, 3)
    found = summaries(series).reshape(3, 5, -1)
    for stay in range(3):
        rows = series.rows(stay)
        for channel in range(series.mask.shape[1]):
            known = series.values[rows, channel][series.mask[rows, channel]]
            wanted = [np.nan] * 4 + [0]
            if len(known):
                wanted = [known[-1], known.mean(), known.min(), known.max(), len(known)]
            np.testing.assert_allclose(found[stay, :, channel], wanted, rtol=1e-6)


def test_some_channels_of_a_series_lose_the_times_at_which_none_was_measured() -> None:
    series = drawn(1, 4)
    part = series.of([2])
    for stay in range(4):
        rows = series.rows(stay)
        kept = series.mask[rows, 2]
        np.testing.assert_array_equal(part.values[part.rows(stay), 0], series.values[rows, 2][kept])
        np.testing.assert_array_equal(part.hours[part.rows(stay)], series.hours[rows][kept])


def test_thinned_series_keep_about_that_share_and_no_other_value() -> None:
    series = drawn(3, 400)
    thin = series.thinned(0.3, np.random.default_rng(0))
    assert thin.mask.sum() / series.mask.sum() == pytest.approx(0.3, abs=0.05)
    assert len(thin) == len(series) and thin.mask.any(axis=1).all()
    assert not thin.values[~thin.mask].any()


def test_the_last_notes_are_kept_in_time_and_blank_ones_are_none() -> None:
    def note(patient: str, hour: float, text: str | None):
        return event(patient, hour, "NOTE", text=text, source="note")

    events = table(
        note("a", 3, "third"), note("a", 1, "first"), note("a", 2, "second"), note("a", 4, "  "),
        note("a", 25, "after the window"), note("b", 1, None), event("b", 1, "na", 1.0),
    )  # fmt: skip
    found, _ = windows(events, stays(("b", 24), ("a", 24)), 24)
    notes, counts = last_notes(found, 2, last=2)
    assert notes.texts == ["second", "third"]
    assert notes.hours.tolist() == [2, 3] and notes.starts.tolist() == [0, 0, 2]
    assert counts == {"notes_read": 2, "notes_too_many": 1, "stays_without_notes": 1}
