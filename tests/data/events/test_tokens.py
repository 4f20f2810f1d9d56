"""Tokens of histories, against a loop over patients, visits and events."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galenic.core.errors import ConfigError, DataError
from galenic.data.events import ordered, read, visible
from galenic.data.events.continuing import FOLLOWS, Continuation
from galenic.data.events.schema import BIRTH, SCHEMA
from galenic.data.events.tokens import INPUTS, History, encode, prompted, truncate
from galenic.data.events.visits import gap_days, gap_token
from galenic.data.events.vocabulary import SPECIAL, UNK, Kind, TokenConfig, Vocabulary

START = datetime(2018, 3, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
Row = dict[str, Any]


def row(code: str, time: datetime | None, source: str, **fields: Any) -> Row:
    return {"patient_id": "p", "time": time, "code": code, "source": source, **fields}


def stay(name: str, start: datetime, end: datetime | None, *codes: str, **fields: Any) -> list[Row]:
    """An encounter and its procedures, one an hour."""
    events = [
        row(code, start + place * HOUR, "procedure", encounter_id=name, **fields)
        for place, code in enumerate(codes)
    ]
    encounter = row("ENCOUNTER//IMP", start, "encounter", encounter_id=name, end=end, **fields)
    return [encounter, *events]


def table(rows: Iterable[Row]) -> pl.DataFrame:
    return ordered(pl.DataFrame(list(rows), schema=SCHEMA))


def random_table(seed: int, patients: int = 8) -> pl.DataFrame:
    """Labs, drugs and procedures of stays that may overlap, be open, be empty, or be left early."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for number in range(patients):
        who = {"patient_id": f"p{number}"}
        rows.append(row(BIRTH, datetime(1950, 3, 1 + number, tzinfo=UTC), "patient") | who)
        start = START + draw.randrange(400) * DAY
        for visit in range(draw.randrange(5)):
            name = f"{number}-{visit}"
            end = start + draw.randrange(1, 300) * HOUR
            open_ = draw.random() < 0.1
            rows.append(
                row(
                    "ENCOUNTER//IMP", start, "encounter",
                    encounter_id=name, end=None if open_ else end,
                ) | who
            )  # fmt: skip
            for _ in range(draw.randrange(8)):
                time = start + draw.randrange(-20, 400) * HOUR
                source = draw.choice(["lab", "vital", "medication", "procedure", "condition"])
                value = (
                    draw.choice([None, draw.gauss(0, 1)]) if source in ("lab", "vital") else None
                )
                code = f"{source}-{draw.randrange(3)}"
                rows.append(
                    row(code, time, source, value=value, unit="mg", encounter_id=name) | who
                )
            start += draw.choice([10 * HOUR, 10 * DAY, 40 * DAY, 500 * DAY]) + draw.choice(
                [end - start, timedelta()]
            )
    return table(rows)


def name_of_gap(days: int) -> str:
    if days < 28:
        return f"[W_{days // 7}]"
    return f"[M_{days // 30}]" if days <= 365 else "[LT]"


def slow_names(events: pl.DataFrame, edges: dict[str, list[float]]) -> dict[str, list[Row]]:
    """Tokens by patient, as dictionaries of streams, by loops."""
    found: dict[str, list[Row]] = {}
    frame = events.to_pandas()
    for patient, group in frame.groupby("patient_id"):
        stays = []
        for _, one in group[group["source"] == "encounter"].iterrows():
            inside = group[
                (group["encounter_id"] == one["encounter_id"])
                & group["source"].isin(["lab", "vital", "medication", "procedure"])
            ]
            is_open = pd.isna(one["end"])
            end = max([one["time"], *inside["time"]]) if is_open else one["end"]
            items = [(min(max(e["time"], one["time"]), end), e) for _, e in inside.iterrows()]
            stays.append([one["time"], end, one["encounter_id"], is_open, items])
        visits: list[Any] = []
        for start, end, _, is_open, items in sorted(stays, key=lambda s: s[:3]):
            if visits and start < visits[-1][1]:
                visits[-1][1] = max(visits[-1][1], end)
                visits[-1][2] |= is_open
                visits[-1][3] += items
            else:
                visits.append([start, end, is_open, list(items)])
        if not visits:
            continue
        birth = group.loc[group["code"] == BIRTH, "time"].iloc[0]
        weeks = [(v[0] - pd.Timestamp("2020-01-01", tz="UTC")).days // 7 for v in visits]
        tokens = [("[CLS]", 0, weeks[0], 0, 0, -2.0)]
        for number, (start, _, is_open, items) in enumerate(visits, start=1):
            age = start.year - birth.year - ((start.month, start.day) < (birth.month, birth.day))
            beside = (age, weeks[number - 1], 1 if number % 2 else 2, number)
            if number > 1:
                days = (start - visits[number - 2][1]).days
                tokens.append((name_of_gap(days), 0, weeks[number - 2], 0, number - 1, -2.0))
            tokens.append(("[VS]", *beside, -1.0))
            for time, event in sorted(items, key=lambda item: item[0]):
                name = event["code"]
                if not np.isnan(event["value"]):
                    name += f"_{sum(event['value'] > edge for edge in edges[name])}"
                tokens.append((name, *beside, (time - start).total_seconds() / 3600))
            if not is_open or number < len(visits):
                tokens.append(("[VE]", *beside, -2.0))
            tokens.append(("[REG]", *beside, -2.0))
        keys = ("token", "ages", "times", "segments", "positions", "elapsed")
        found[str(patient)] = [dict(zip(keys, token, strict=True)) for token in tokens]
    return found


def names_of(history: History, vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.tokens[token] for token in history["input_ids"]]


@pytest.mark.parametrize("seed", range(6))
def test_encoding_is_that_of_a_loop(seed: int) -> None:
    events = random_table(seed)
    vocabulary = Vocabulary.fit(events, TokenConfig())
    edges = {binned.code: list(binned.edges) for binned in vocabulary.binned}
    found, slow = encode(events, vocabulary), slow_names(events, edges)
    assert found.subjects["patient_id"].to_list() == list(slow)
    for place, tokens in enumerate(slow.values()):
        history = found[place]
        assert names_of(history, vocabulary) == [token["token"] for token in tokens]
        for stream in ("ages", "times", "segments", "positions"):
            assert history[stream].tolist() == [token[stream] for token in tokens]
        elapsed = np.array([token["elapsed"] for token in tokens])
        np.testing.assert_allclose(history["elapsed"], elapsed, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(5, 60))
def test_streams_agree_whatever_is_cut_off(seed: int, length: int) -> None:
    events = random_table(seed, patients=3)
    vocabulary = Vocabulary.fit(events, TokenConfig()) if len(events) > 20 else None
    if vocabulary is None:
        return
    known = encode(events, vocabulary)
    for place in range(len(known)):
        whole = known[place]
        for history in (whole, truncate(whole, length)):
            kinds = history["types"]
            assert {len(stream) for stream in history.values()} == {len(kinds)}
            assert len(kinds) <= max(length, len(kinds) * (history is whole))
            visits = int((kinds == Kind.VS).sum())
            assert visits == history["positions"].max()
            assert (kinds == Kind.GAP).sum() == visits - 1
            assert kinds[:2].tolist() == [Kind.CLS, Kind.VS] and kinds[-1] == Kind.REG
            inside = ~np.isin(kinds, (Kind.CLS, Kind.GAP))
            assert (history["segments"][inside] == 2 - history["positions"][inside] % 2).all()
            assert not history["segments"][~inside].any() and not history["ages"][~inside].any()
            for before, after in zip(kinds[:-1], kinds[1:], strict=True):
                open_end = after == Kind.REG
                assert Kind(after) in FOLLOWS[Kind(before)] or open_end
        cut = truncate(whole, length)
        kept = len(cut["types"]) - 2
        assert cut["input_ids"][2:].tolist() == whole["input_ids"][-kept:].tolist()


@pytest.mark.parametrize(
    ("days", "name"),
    [(0, "[W_0]"), (6, "[W_0]"), (7, "[W_1]"), (27, "[W_3]"), (28, "[M_0]"), (29, "[M_0]"),
     (30, "[M_1]"), (59, "[M_1]"), (365, "[M_12]"), (366, "[LT]"), (4000, "[LT]")],
)  # fmt: skip
def test_gaps_have_their_limits(days: int, name: str) -> None:
    token = pl.select(gap_token(pl.lit(days))).item()
    assert list(SPECIAL)[token] == name


def test_a_gap_stands_for_days_that_give_the_same_gap() -> None:
    for name, token in [(name, place) for place, name in enumerate(SPECIAL) if name[1] in "WML"]:
        again = pl.select(gap_token(pl.lit(int(gap_days(token))))).item()
        assert again == token, name


def test_encounters_that_overlap_are_one_visit() -> None:
    events = table(
        stay("a", START, START + 3 * DAY, "x")
        + stay("b", START + DAY, START + 2 * DAY, "y")
        + stay("c", START + 3 * DAY, START + 4 * DAY, "z")
    )
    vocabulary = Vocabulary.fit(events, TokenConfig())
    assert names_of(encode(events, vocabulary)[0], vocabulary) == [
        "[CLS]", "[VS]", "x", "y", "[VE]", "[REG]", "[W_0]", "[VS]", "z", "[VE]", "[REG]",
    ]  # fmt: skip


def test_events_are_put_into_their_encounter() -> None:
    late = row("late", START + 9 * DAY, "procedure", encounter_id="a")
    early = row("early", START - DAY, "procedure", encounter_id="a")
    events = table([*stay("a", START, START + 2 * DAY, "x"), late, early])
    vocabulary = Vocabulary.fit(events, TokenConfig())
    history = encode(events, vocabulary)[0]
    assert names_of(history, vocabulary)[2:5] == ["early", "x", "late"]
    assert history["elapsed"][2:5].tolist() == [0, 0, 48]


def test_an_event_of_no_encounter_is_counted() -> None:
    alone = row("alone", START, "procedure", encounter_id="unknown")
    events = table([*stay("a", START, START + DAY, "x"), alone])
    found = encode(events, Vocabulary.fit(events, TokenConfig()))
    assert found.unplaced == 1 and found.lengths.tolist() == [5]


def test_an_event_that_names_no_encounter_belongs_to_the_visit_that_goes_on() -> None:
    rows = stay("a", START, START + DAY, "x") + stay("b", START + 5 * DAY, None, "y")
    loose = [row(f"at {h}", START + h * HOUR, "procedure") for h in (-1, 0, 5, 24, 25, 119, 500)]
    nameless = [r | {"encounter_id": None} for r in rows]
    for stays in (rows, nameless):
        events = table([*stays, *loose])
        found = encode(events, vocabulary := Vocabulary.fit(events, TokenConfig()))
        assert names_of(found[0], vocabulary) == [
            "[CLS]", "[VS]", "at 0", "x", "at 5", "at 24", "[VE]", "[REG]",
            "[W_0]", "[VS]", "y", "at 500", "[REG]",
        ]  # fmt: skip
        assert found.unplaced == 3


def test_who_has_no_encounter_has_no_history() -> None:
    other = row(BIRTH, START, "patient") | {"patient_id": "a"}
    events = table([*stay("s", START, START + DAY, "x"), other])
    found = encode(events, Vocabulary.fit(events, TokenConfig()))
    assert found.subjects["patient_id"].to_list() == ["p"]


# What is learnt from whom -----------------------------------------------------------------


def labs(values: Iterable[float], unit: str | None = "mg", code: str = "lab") -> list[Row]:
    rows = stay("a", START, START + 90 * DAY)
    return rows + [
        row(code, START + place * HOUR, "lab", value=value, unit=unit, encounter_id="a")
        for place, value in enumerate(values)
    ]


@pytest.mark.parametrize("values", [range(20), [0.0] * 15 + [1, 2, 3], [5.0] * 4, [0, 0, 1, 1]])
def test_bins_are_those_of_qcut(values: Iterable[float]) -> None:
    values = [float(value) for value in values]
    events = table(labs(values))
    vocabulary = Vocabulary.fit(events, TokenConfig())
    bins = pd.qcut(values, 5, labels=False, duplicates="drop")
    # One value alone leaves qcut without a bin.
    expected = [f"lab_{int(place)}" for place in np.nan_to_num(bins)]
    assert names_of(encode(events, vocabulary)[0], vocabulary)[2:-2] == expected


def test_values_beyond_those_of_training_are_in_the_outer_bins() -> None:
    vocabulary = Vocabulary.fit(table(labs(range(10))), TokenConfig())
    found = encode(table(labs([-100, 100])), vocabulary)[0]
    assert names_of(found, vocabulary)[2:4] == ["lab_0", "lab_4"]


def test_nothing_of_other_patients_moves_the_vocabulary() -> None:
    train = table(labs(range(10)))
    vocabulary = Vocabulary.fit(train, TokenConfig())
    before = vocabulary.fingerprint
    other = table(labs([1e6] * 5) + stay("b", START + 200 * DAY, START + 201 * DAY, "unseen"))
    history = encode(other, vocabulary)[0]
    assert vocabulary.fingerprint == before
    assert history["input_ids"][-3] == UNK and history["types"][-3] == Kind.PROC


def test_a_code_of_two_units_is_dropped_or_split() -> None:
    rows = labs([1, 2, 3]) + labs([100, 200, 300], unit="g")[1:] + labs([7.0], code="other")[1:]
    events = table(rows)
    dropping = Vocabulary.fit(events, TokenConfig())
    assert dropping.dropped == ("lab",)
    assert names_of(encode(events, dropping)[0], dropping)[2:-2] == ["other_0"]
    splitting = Vocabulary.fit(events, TokenConfig(units="split"))
    names = names_of(encode(events, splitting)[0], splitting)
    assert {"lab [mg]_0", "lab [g]_4", "other [mg]_0"} <= set(names)


def test_a_value_in_an_unknown_unit_is_unknown_and_one_without_a_unit_is_not() -> None:
    vocabulary = Vocabulary.fit(table(labs(range(10))), TokenConfig())
    other = encode(table(labs([0.0], unit="mmol")), vocabulary)[0]
    assert other["input_ids"][2] == UNK
    bare = encode(table(labs([0.0], unit=None)), vocabulary)[0]
    assert names_of(bare, vocabulary)[2] == "lab_0"


def test_a_dose_is_no_result() -> None:
    drug = row("drug", START, "medication", value=500.0, unit="mg", encounter_id="a")
    events = table([*stay("a", START, START + DAY), drug])
    vocabulary = Vocabulary.fit(events, TokenConfig())
    assert names_of(encode(events, vocabulary)[0], vocabulary)[2] == "drug"


def test_a_code_of_few_patients_is_unknown() -> None:
    both = [*stay("a", START, START + DAY, "common", "rare")]
    both += [r | {"patient_id": "q"} for r in stay("b", START, START + DAY, "common")]
    vocabulary = Vocabulary.fit(table(both), TokenConfig(min_patients=2))
    assert list(vocabulary.plain) == ["common"]


def test_labels_never_become_tokens(real_data: Path) -> None:
    events = read(real_data / "fhir_synthea_r4" / "bundles").frame
    vocabulary = Vocabulary.fit(events, TokenConfig(), ["readmission"])
    own = {"lab", "vital", "medication", "procedure"}
    outside = events.filter(~pl.col("source").is_in(own))["code"].unique()
    inside = events.filter(pl.col("source").is_in(own))["code"].unique()
    assert not (set(outside) - set(inside)) & set(vocabulary.codes.values())
    assert vocabulary.tokens[vocabulary.prompts["readmission"]] == "[readmission]"


def test_lines_and_bundles_give_the_same_tokens(real_data: Path, tmp_path: Path) -> None:
    import gzip

    bundles = sorted((real_data / "fhir_synthea_r4" / "bundles").iterdir())[:4]
    resources = []
    for path in bundles:
        bundle = json.loads(gzip.decompress(path.read_bytes()))
        resources += [(entry["fullUrl"], entry["resource"]) for entry in bundle["entry"]]
    random.Random(0).shuffle(resources)
    lines = tmp_path / "all.ndjson"
    lines.write_text("\n".join(json.dumps(resource) for _, resource in resources))
    first, again = read(*bundles).frame, read(lines).frame
    vocabulary = Vocabulary.fit(first, TokenConfig())
    assert Vocabulary.fit(again, TokenConfig()) == vocabulary
    one, other = encode(first, vocabulary), encode(again, vocabulary)
    assert one.offsets.tolist() == other.offsets.tolist()
    for name in one.streams:
        assert np.array_equal(one.streams[name], other.streams[name])


# Cutoffs and prompts ----------------------------------------------------------------------


def test_nothing_at_or_after_a_cutoff_is_read() -> None:
    events = table(stay("a", START, START + 5 * DAY, *"uvwxyz"))
    vocabulary = Vocabulary.fit(events, TokenConfig())
    for hours in range(1, 8):
        cutoffs = pl.DataFrame(
            {"patient_id": ["p"], "cutoff": [START + hours * HOUR]},
            schema={"patient_id": pl.String, "cutoff": SCHEMA["time"]},
        )
        history = encode(visible(events, cutoffs), vocabulary)[0]
        assert names_of(history, vocabulary) == ["[CLS]", "[VS]", *"uvwxyz"[:hours], "[REG]"]


def test_each_cutoff_of_a_patient_is_a_history() -> None:
    events = table(
        stay("a", START, START + DAY, "x") + stay("b", START + 9 * DAY, START + 10 * DAY, "y")
    )
    vocabulary = Vocabulary.fit(events, TokenConfig())
    times = [START + 2 * DAY, START + 20 * DAY]
    cutoffs = pl.DataFrame(
        {"patient_id": ["p"] * 2, "cutoff": times},
        schema={"patient_id": pl.String, "cutoff": SCHEMA["time"]},
    )
    found = encode(visible(events, cutoffs), vocabulary)
    assert found.subjects["cutoff"].to_list() == times
    assert found.lengths.tolist() == [5, 10]


@pytest.mark.parametrize("length", [6, 8, 2048])
def test_two_tasks_differ_in_their_tokens_alone(length: int) -> None:
    events = table(stay("a", START, START + DAY, *"uvwxyz"))
    vocabulary = Vocabulary.fit(events, TokenConfig(), ["one", "two"])
    cut = truncate(encode(events, vocabulary)[0], length)
    first, second = (prompted(cut, vocabulary.prompts[name]) for name in ("one", "two"))
    differs = first["input_ids"] != second["input_ids"]
    assert np.flatnonzero(differs).tolist() == [0, len(differs) - 1]
    assert names_of(first, vocabulary)[-1] == "[one]"
    assert names_of(cut, vocabulary)[0] == "[CLS]"
    assert all(np.array_equal(first[name], second[name]) for name in first if name != "input_ids")


# Going on ---------------------------------------------------------------------------------


def test_written_streams_are_those_of_an_encoded_history() -> None:
    """Fed with the tokens of a history, the rules give its streams back."""
    events = table(
        [
            row(BIRTH, datetime(1950, 3, 1, tzinfo=UTC), "patient"),
            *stay("a", START, START + HOUR, "x", "y"),
            *stay("b", START + 17 * DAY + HOUR, START + 17 * DAY + 2 * HOUR, "x"),
            *stay("c", START + 350 * DAY, START + 351 * DAY, "y"),
        ]
    )
    vocabulary = Vocabulary.fit(events, TokenConfig())
    whole = encode(events, vocabulary)[0]
    beside = Continuation({name: values[:2] for name, values in whole.items()}, vocabulary)
    for place in range(2, len(whole["types"])):
        assert beside.allowed[whole["input_ids"][place]]
        streams = beside.add(int(whole["input_ids"][place]))
        expected = {name: int(whole[name][place]) for name in INPUTS}
        # A gap stands for the middle of its range.
        assert abs(streams.pop("times") - expected.pop("times")) <= 2
        assert streams == expected


def test_no_special_token_is_ever_allowed_where_it_cannot_be() -> None:
    events = table(labs(range(10)))
    vocabulary = Vocabulary.fit(events, TokenConfig(), ["task"])
    history = encode(events, vocabulary)[0]
    for end in range(1, len(history["types"])):
        beside = Continuation({name: v[:end] for name, v in history.items()}, vocabulary)
        allowed = {vocabulary.tokens[token] for token in np.flatnonzero(beside.allowed)}
        assert allowed and not allowed & {"[PAD]", "[UNK]", "[CLS]", "[task]"}
        if history["types"][end - 1] == Kind.GAP:
            assert allowed == {"[VS]"}


# Files ------------------------------------------------------------------------------------


def test_a_vocabulary_comes_back_from_its_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary.fit(random_table(3), TokenConfig(bins=3), ["a", "b"])
    vocabulary.save(tmp_path / "v.json")
    again = Vocabulary.load(tmp_path / "v.json", vocabulary.fingerprint)
    assert again == vocabulary and again.fingerprint == vocabulary.fingerprint


def test_a_vocabulary_that_is_another_or_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    Vocabulary.fit(table(labs(range(10))), TokenConfig()).save(path)
    with pytest.raises(DataError, match="another vocabulary"):
        Vocabulary.load(path, "0" * 64)
    path.write_text(path.read_text().replace("lab_0", "lab_9"))
    with pytest.raises(DataError, match="was changed"):
        Vocabulary.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        Vocabulary.load(path)


def test_bad_input_is_named() -> None:
    events = table(stay("a", START, START + DAY, "x"))
    with pytest.raises(DataError, match="can become a token"):
        Vocabulary.fit(events, TokenConfig(sources=["lab"]))
    vocabulary = Vocabulary.fit(events, TokenConfig())
    both = pl.concat([events, events.with_columns(patient_id=pl.lit("a"))])
    with pytest.raises(DataError, match="order"):
        encode(both, vocabulary)


def test_unknown_sources_are_refused() -> None:
    from galenic.core.config import parse

    with pytest.raises(ConfigError, match="sources"):
        parse(TokenConfig, {"sources": ["note"]})
