"""A finished run over stays says of other events what it would have said of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pytest
from typer.testing import CliRunner

import galenic
from galenic.app.cli import app
from galenic.app.report import write
from galenic.core.errors import ConfigError, DataError, GalenicError, WeightsError
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.data.events import ordered
from galenic.data.events.schema import SCHEMA

START = datetime(2026, 1, 1, tzinfo=UTC)
CUTOFF = START + timedelta(hours=24)
COUNT = 48
# In the manifest and in its test part, and nowhere in the events.
UNKNOWN = 15
TINY = [
    "network.width=8", "network.time_width=4", "network.heads=2", "network.layers=1",
    "series.window_hours=24", "series.steps=4", "head.trees.min_samples_leaf=2",
    "head.trees.max_iter=5", "score.resamples=20", "schedule.epochs=2", "schedule.lr=1e-2",
]  # fmt: skip
KINDS = {
    "irregular": [],
    "gru": ["network.kind=gru"],
    "trees": ["network.kind=trees"],
    "panel": ["modalities=[series,panel]", "series.panel=[urea]"],
    "frozen": ["modalities=[series,notes]"],
    "tuned": ["modalities=[series,notes]", "tuner.method=full"],
    "notes": ["modalities=[notes]"],
}
DIES = {
    "name": "dies",
    "anchor": {"codes": {"prefix": ["ENCOUNTER//"]}},
    "cutoff": "start + 24h",
    "label": {"codes": {"exact": ["MEDS_DEATH"]}, "until": "end"},
}
SCORE = {"resamples": 20}


@dataclass(frozen=True)
class Hospital:
    """Events, and a manifest of their stays."""

    events: pl.DataFrame
    stays: pd.DataFrame

    def write(self, folder: Path) -> Path:
        """Both, as files."""
        self.stays.to_csv(folder / "stays.csv", index=False)
        return written(self.events, folder / "events")


def written(events: pl.DataFrame, folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    ordered(events).write_parquet(folder / "data" / "0.parquet")
    return folder


def listed(stays: pd.DataFrame, path: Path) -> str:
    stays.to_csv(path, index=False)
    return str(path)


def event(
    patient: str, hour: float, code: str, value: float | None = None, **more: Any
) -> dict[str, Any]:
    found = {"patient_id": patient, "time": START + timedelta(seconds=round(hour * 3600))}
    return dict.fromkeys(SCHEMA) | found | {"code": code, "value": value, "source": "lab"} | more


@pytest.fixture(scope="module")
def hospital() -> Hospital:
    """Sodium of every stay, urea of most, notes of some; half of the patients die."""
    draw = np.random.default_rng(0)
    rows, stays = [], []
    for number in range(COUNT):
        patient, bad = f"p{number}", number % 2 == 1
        part = ("train", "train", "val", "test")[number // 2 % 4]
        stays.append(
            {"patient_id": patient, "cutoff": CUTOFF.isoformat(), "split": part,
             "label": "died" if bad else "alive"}
        )  # fmt: skip
        if number == UNKNOWN:
            continue
        end = START + timedelta(hours=100)
        rows.append(event(patient, 0, "ENCOUNTER//IMP", source="encounter", end=end))
        values = [(hour, 140 + 2 * bad + draw.normal()) for hour in draw.uniform(0, 24, 5)]
        # What is after the cutoff would say it all.
        values.append((30, 0.0 if bad else 300.0))
        rows += [event(patient, hour, "sodium", value, unit="mmol/L") for hour, value in values]
        if number % 3:
            rows.append(event(patient, draw.uniform(0, 24), "urea", draw.normal(5, 1)))
        if number % 7:
            words = "pressors were started" if bad else "resting well, no complaints today"
            rows.append(event(patient, draw.uniform(1, 23), "NOTE", text=words, source="note"))
        if bad:
            rows.append(event(patient, 90, "MEDS_DEATH", source="patient"))
    return Hospital(pl.DataFrame(rows, schema=SCHEMA), pd.DataFrame(stays))


@pytest.fixture(scope="module")
def runs(
    hospital: Hospital, small_text: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Run]:
    """A finished run of each kind, made when first asked for; its data are gone."""

    @cache
    def get(kind: str) -> Run:
        folder = tmp_path_factory.mktemp(kind)
        (folder / "data").mkdir()
        events = hospital.write(folder / "data")
        run = galenic.run(
            "irregular-ehr", events, stays=str(folder / "data" / "stays.csv"),
            backbone=small_text, out=folder, overrides=[*TINY, *KINDS[kind]], cache=False,
        )  # fmt: skip
        shutil.rmtree(folder / "data")
        return run

    return get


@pytest.fixture
def new(hospital: Hospital, tmp_path: Path) -> tuple[Path, str]:
    """The same events and stays, elsewhere."""
    return hospital.write(tmp_path), str(tmp_path / "stays.csv")


def scores_of(run: Run) -> np.ndarray:
    found = pd.read_parquet(run.path / "predictions.parquet")
    return found[found["split"] == "test"].filter(regex="^score").to_numpy()


def predicted(run: Run, events: Path, out: Path, stays: str | None, **more: Any) -> pd.DataFrame:
    made = galenic.predict(run.path, events, out=out, stays=stays, score=SCORE, **more)
    return pd.read_csv(made.path / "predictions.csv")


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_part_is_predicted_as_before_without_the_training_data(
    kind: str, hospital: Hospital, runs: Callable[[str], Run], tmp_path: Path
) -> None:
    run = runs(kind)
    rows = run.read_json("splits.json")["test"]
    assert UNKNOWN in rows and np.ptp(scores_of(run)) > 1e-3
    events = written(hospital.events, tmp_path / "elsewhere")
    stays = listed(hospital.stays.iloc[rows], tmp_path / "new.csv")
    made = galenic.predict(run.path, events, out=tmp_path, stays=stays, score=SCORE)
    np.testing.assert_allclose(scores_of(made), scores_of(run), rtol=0, atol=1e-6)
    for name, before in run.metrics.items():
        assert made.metrics[name].value == pytest.approx(before.value, abs=1e-6), name
    first, second = (one.read_json("operating.json")[0] for one in (run, made))
    assert first["threshold"] == pytest.approx(second["threshold"], abs=1e-6)
    found = pd.read_csv(made.path / "predictions.csv")
    assert list(found) == ["row", "predicted", "p_alive", "p_died"] and len(found) == len(rows)
    before, here = (one.read_json("series.json") for one in (run, made))
    assert here["channels"] == before["channels"]
    assert here["counts"]["stays_of_unknown_patients"] == 1
    assert made.provenance["data"]["events"] == here["counts"]


def test_stays_without_labels_are_predicted_and_not_scored(
    hospital: Hospital, runs: Callable[[str], Run], new: tuple[Path, str], tmp_path: Path
) -> None:
    run, (events, _) = runs("irregular"), new
    blind = hospital.stays[["patient_id", "cutoff"]]
    stays = listed(blind, tmp_path / "blind.csv")
    made = galenic.predict(run.path, events, out=tmp_path, stays=stays)
    assert made.state == "finished" and not (made.path / "metrics.json").exists()
    whole = pd.read_csv(made.path / "predictions.csv")
    assert (whole["predicted"] == np.where(whole["p_died"] > 0.5, "died", "alive")).all()
    for name in ("predictions.csv", "rejections.csv", "series.json", "provenance.json"):
        assert "p41" not in (made.path / name).read_text()
    # Nothing is learnt of new stays: one alone is predicted as among others.
    alone = predicted(run, events, tmp_path, listed(blind.iloc[[7]], tmp_path / "one.csv"))
    assert alone["p_died"][0] == pytest.approx(whole["p_died"][7], abs=1e-6)
    # A patient who is not in the events is one of whom nothing was measured.
    early = blind.iloc[[7]].assign(cutoff=START.isoformat())
    nothing = predicted(run, events, tmp_path, listed(early, tmp_path / "early.csv"))
    assert nothing["p_died"][0] == pytest.approx(whole["p_died"][UNKNOWN], abs=1e-6)
    strangers = listed(blind.iloc[[UNKNOWN]], tmp_path / "strangers.csv")
    with pytest.raises(DataError, match="None of the 1 stays"):
        predicted(run, events, tmp_path, strangers)


def test_a_channel_that_the_run_does_not_know_changes_nothing(
    hospital: Hospital, runs: Callable[[str], Run], new: tuple[Path, str], tmp_path: Path
) -> None:
    run, (events, stays) = runs("irregular"), new
    sodium = hospital.events.filter(pl.col("code") == "sodium")
    iron = sodium.with_columns(
        code=pl.lit("iron"), value=pl.col("value") / 9, unit=pl.lit("umol/L")
    )
    more = written(pl.concat([hospital.events, iron]), tmp_path / "more")
    known, with_iron = (predicted(run, one, tmp_path, stays) for one in (events, more))
    pd.testing.assert_frame_equal(known, with_iron, check_exact=True)


def test_a_channel_that_is_not_there_was_never_measured(
    hospital: Hospital,
    runs: Callable[[str], Run],
    new: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, (events, stays) = runs("irregular"), new
    tell.cache_clear()
    whole = predicted(run, events, tmp_path, stays)
    assert "never measured" not in capsys.readouterr().err
    less = hospital.events.filter(pl.col("code") != "urea")
    without = predicted(run, written(less, tmp_path / "less"), tmp_path, stays)
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of the 2 channels that the run reads are not in the new events" in told
    same = np.isclose(whole["p_died"], without["p_died"], atol=1e-6)
    measured = np.arange(COUNT) % 3 > 0
    measured[UNKNOWN] = False
    assert (same == ~measured).all()


def test_events_that_do_not_fit_the_run_are_refused(
    hospital: Hospital, runs: Callable[[str], Run], new: tuple[Path, str], tmp_path: Path
) -> None:
    run, (_, stays) = runs("irregular"), new
    sodium = pl.col("code") == "sodium"

    def refused(words: str, name: str, kind: str = "irregular", **columns: pl.Expr) -> None:
        events = written(hospital.events.with_columns(**columns), tmp_path / name)
        with pytest.raises(DataError, match=words):
            predicted(runs(kind), events, tmp_path, stays)

    refused(
        r"none of the channels(.|\n)*expected: sodium, urea", "codes", code="X//" + pl.col("code")
    )
    refused(
        "'sodium' comes in mg/dL, and in training in mmol/L", "unit",
        unit=pl.when(sodium).then(pl.lit("mg/dL")).otherwise("unit"),
    )  # fmt: skip
    late = sodium & (pl.col("time") > START + timedelta(hours=12))
    refused(
        "'sodium' comes in 2 units", "units",
        unit=pl.when(late).then(pl.lit("mg/dL")).otherwise("unit"),
    )  # fmt: skip
    refused("no note, and the run reads notes alone", "silent", "notes", source=pl.lit("lab"))
    with pytest.raises(DataError, match="no 'nothing'"):
        predicted(run, tmp_path / "nothing", tmp_path, stays)


def test_without_any_note_stays_are_predicted_as_those_that_have_none(
    hospital: Hospital, runs: Callable[[str], Run], new: tuple[Path, str], tmp_path: Path
) -> None:
    run, (events, stays) = runs("tuned"), new
    whole = predicted(run, events, tmp_path, stays)
    silent = written(hospital.events.filter(pl.col("source") != "note"), tmp_path / "silent")
    without = predicted(run, silent, tmp_path, stays)
    same = np.isclose(whole["p_died"], without["p_died"], rtol=0, atol=1e-6)
    lacking = np.arange(COUNT) % 7 == 0
    lacking[UNKNOWN] = True
    assert (same == lacking).all()


def test_another_text_network_is_refused(
    runs: Callable[[str], Run], new: tuple[Path, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(runs("frozen").path, tmp_path / "copy")
    run = Run.open(folder)
    run.update_provenance(weights={"fingerprint": "another"})
    with pytest.raises(WeightsError, match="not the network that"):
        predicted(run, new[0], tmp_path, new[1])


def test_stays_by_the_definition_of_the_run(
    hospital: Hospital, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = written(hospital.events, tmp_path / "events")
    run = galenic.run(
        "irregular-ehr", events, definition=DIES, out=tmp_path,
        overrides=[*TINY, "network.kind=gru"], cache=False,
    )  # fmt: skip
    events = events.rename(tmp_path / "elsewhere")
    tell.cache_clear()
    made = galenic.predict(run.path, events, out=tmp_path, score=SCORE)
    assert "trained on these very samples" in capsys.readouterr().err
    rows = run.read_json("splits.json")["test"]
    assert len(scores_of(made)) == COUNT - 1
    np.testing.assert_allclose(scores_of(made)[rows], scores_of(run), rtol=0, atol=1e-6)
    text = write(made.path).read_text()
    assert f"Predicted by <code>{run.path.name}</code>" in text
    # Of those who are still there nobody knows the outcome.
    here = written(hospital.events.with_columns(end=pl.lit(None, SCHEMA["end"])), tmp_path / "here")
    with pytest.raises(DataError, match=r"'dies' no stay(.|\n)*--stays"):
        galenic.predict(run.path, here, out=tmp_path)
    stays = hospital.stays[["patient_id", "cutoff"]]
    found = predicted(run, here, tmp_path, listed(stays, tmp_path / "here.csv"))
    assert list(found) == ["row", "predicted", "p_0", "p_1"] and len(found) == COUNT


def test_tables_are_read_by_the_mapping_and_the_clock_of_the_run(
    hospital: Hospital, tmp_path: Path
) -> None:
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(
        "tables: [{file: labs, patient: '{who}', events: [{code: '{what}', source: lab, "
        "time: '{when}', value: '{number}', unit: '{unit}'}]}]"
    )
    labs = hospital.events.filter(pl.col("source") == "lab")
    clock = pl.col("time").dt.convert_time_zone("Asia/Tokyo").dt.strftime("%Y-%m-%d %H:%M:%S")
    (tmp_path / "tables").mkdir()
    labs.select(who="patient_id", what="code", when=clock, number="value", unit="unit").write_csv(
        tmp_path / "tables" / "labs.csv"
    )
    stays = listed(hospital.stays, tmp_path / "stays.csv")
    run = galenic.run(
        "irregular-ehr", tmp_path / "tables", stays=stays, mapping=str(mapping),
        timezone="Asia/Tokyo", out=tmp_path, overrides=[*TINY, "network.kind=trees"], cache=False,
    )  # fmt: skip
    tables = tmp_path / "tables"
    own = predicted(run, tables, tmp_path, stays)
    rows = run.read_json("splits.json")["test"]
    np.testing.assert_allclose(own["p_died"][rows], scores_of(run)[:, 0], rtol=0, atol=1e-6)
    events = written(labs, tmp_path / "events")
    plain = predicted(run, events, tmp_path, stays, mapping="")
    pd.testing.assert_frame_equal(own, plain)
    elsewhere = predicted(run, tables, tmp_path, stays, timezone="America/Lima")
    assert np.abs(elsewhere["p_died"] - own["p_died"]).max() > 1e-3
    # Cutoffs without a zone hang on the clock of the events, wherever that is.
    naive = hospital.stays.assign(cutoff=f"{CUTOFF.astimezone(ZoneInfo('Asia/Tokyo')):%F %H:%M}")
    clocks = listed(naive, tmp_path / "clocks.csv")
    for zone in (None, "America/Lima"):
        pd.testing.assert_frame_equal(predicted(run, tables, tmp_path, clocks, timezone=zone), own)


def test_what_is_asked_of_the_wrong_run_is_named(
    runs: Callable[[str], Run], new: tuple[Path, str], tmp_path: Path
) -> None:
    def refused(kind: type[GalenicError], words: str, run: Run, **keys: Any) -> None:
        with pytest.raises(kind, match=words):
            galenic.predict(run.path, new[0], out=tmp_path, **keys)

    run = runs("irregular")
    refused(ConfigError, "read its stays from a manifest(.|\n)*--stays", run)
    refused(DataError, r"no file 'none\.csv'", run, stays=str(tmp_path / "none.csv"))
    no_cutoff = listed(pd.read_csv(new[1]).drop(columns="cutoff"), tmp_path / "no_cutoff.csv")
    refused(DataError, "no column 'cutoff'", run, stays=no_cutoff)
    plain = Run.create(tmp_path, "linear")
    plain.start({}, task="classify")
    plain.finish()
    refused(ConfigError, "reads no events(.|\n)*stays, timezone", plain, stays="x", timezone="UTC")


def test_the_command_takes_stays(
    runs: Callable[[str], Run], new: tuple[Path, str], tmp_path: Path
) -> None:
    words = ["predict", str(runs("gru").path), "--data", str(new[0]), "--stays", new[1]]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path), "--name", "made"])
    assert done.exit_code == 0, done.output
    assert "predictions.csv" in done.output and "AUROC" in done.output.upper()
    assert len(pd.read_csv(tmp_path / "made" / "predictions.csv")) == COUNT
