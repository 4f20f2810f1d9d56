"""Patients in time, end to end, on histories whose answers are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from typer.testing import CliRunner

from galenic import launch
from galenic.app.cli import app
from galenic.core.errors import ConfigError, DataError
from galenic.core.run import Run
from galenic.data.events import meds, ordered
from galenic.data.events.schema import BIRTH, DEATH, SCHEMA
from galenic.tasks import forecast
from galenic.tasks._forecast_config import Config
from galenic.tasks._forecast_records import Records

SMALL = [
    "tasks=[length_of_stay,readmission]",
    "sizes.layers=1",
    "sizes.width=16",
    "sizes.dropout=0",
    "length=64",
    "score.resamples=50",
]


def stays(folder: Path, patients: int = 60) -> Path:
    """Three stays each; a drug on the first day tells a long one, and `soon` a return."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(patients):
        who = {"patient_id": f"SECRET-{number:03d}"}
        start = datetime(2020, 1, 1, tzinfo=UTC)
        rows.append({**who, "time": start - timedelta(days=18_000), "code": BIRTH})
        for visit in range(3):
            long, soon = draw.random() < 0.5, draw.random() < 0.5
            end = start + timedelta(days=10 if long else 3)
            stay = {**who, "encounter_id": f"{number}-{visit}"}
            rows.append({**stay, "time": start, "code": "ENCOUNTER//IMP", "end": end})
            codes = ["LONG" if long else "SHORT", "SOON" if soon else "LATER", *"abc"]
            for place, code in enumerate(codes):
                at = start + timedelta(hours=1 + place)
                rows.append({**stay, "time": at, "code": code})
            start = end + timedelta(days=12 if soon else 200)
        if number % 2:
            rows.append({**who, "time": start, "code": DEATH})
    frame = pl.DataFrame(rows, schema=SCHEMA).with_columns(
        source=pl.when(pl.col("code") == "ENCOUNTER//IMP")
        .then(pl.lit("encounter"))
        .when(pl.col("code").is_in([BIRTH, DEATH]))
        .then(pl.lit("patient"))
        .otherwise(pl.lit("medication"))
    )
    return meds.write(ordered(frame), folder, {"LONG": "a drug for long stays"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stays(tmp_path_factory.mktemp("data") / "meds")


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained until it knows."""
    return launch.run(
        "ehrmamba",
        data,
        out=tmp_path_factory.mktemp("runs"),
        overrides=[
            *SMALL,
            "sizes.width=32",
            "pretraining.epochs=20",
            "pretraining.lr=1e-2",
            "schedule.epochs=20",
            "schedule.lr=3e-3",
            "schedule.batch_size=8",
            "schedule.patience=null",
        ],
    )


@pytest.fixture(scope="module")
def quick(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A quick run with some overrides, made when first asked for."""
    out, done = tmp_path_factory.mktemp("quick"), dict[tuple[str, ...], Run]()

    def get(*overrides: str) -> Run:
        if overrides not in done:
            done[overrides] = launch.run(
                "ehrmamba", data, out=out, quick=True, overrides=[*SMALL, *overrides]
            )
        return done[overrides]

    return get


def test_both_tasks_are_learnt_by_one_network(made: Run) -> None:
    tasks = {task["task"]: task for task in made.read_json("tasks.json")}
    assert set(tasks) == {"length_of_stay", "readmission"}
    for task in tasks.values():
        for name in ("auroc", "auprc", "f1", "balanced_accuracy"):
            assert task["metrics"][name]["value"] > 0.9, (task["task"], name)
    assert made.metrics["balanced_accuracy"].value > 0.9
    # Five of the tokens of a stay can be known from those before.
    assert made.metrics["next_token_accuracy"].value > 0.6
    assert made.metrics["perplexity"].value < 3


def test_no_patient_is_in_two_parts_or_named(made: Run) -> None:
    splits = made.read_json("splits.json")
    parts = [set(splits[part]) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60
    table = pd.read_parquet(made.path / "predictions.parquet")
    assert set(table.loc[table["split"] == "test", "group"]) <= parts[2]
    leaks = [p.name for p in made.path.rglob("*") if p.is_file() and b"SECRET" in p.read_bytes()]
    assert leaks == []


def test_a_loaded_run_answers_as_it_did(made: Run) -> None:
    job = forecast.load(made)
    patient = job.records.patients[int(job.records.splits.test[0])]
    again = forecast.load(made)
    assert forecast.answers(job, patient) == forecast.answers(again, patient)
    written = [forecast.forecast(j, patient, 30, seed=1) for j in (job, again)]
    pd.testing.assert_frame_equal(*written)


def test_what_is_written_keeps_the_grammar_and_the_clock(made: Run) -> None:
    job = forecast.load(made)
    patient = job.records.patients[0]
    table = forecast.forecast(job, patient, 60, temperature=0)
    pd.testing.assert_frame_equal(table, forecast.forecast(job, patient, 60, temperature=0, seed=5))
    starts = table[table["token"] == "[VS]"]
    assert table["token"].iloc[0].startswith(("[W", "[M", "[L"))
    assert starts["visit"].tolist() == list(range(4, 4 + len(starts)))
    assert len(starts) > 2 and starts["week"].is_monotonic_increasing
    # What was learnt: a stay has its five drugs, each in its place.
    for _, stay in table[~table["token"].str.startswith("[")].groupby("visit"):
        if len(stay) == 5:
            assert stay["token"].tolist()[2:] == ["a", "b", "c"]
    drawn = [forecast.forecast(job, patient, 60, seed=seed)["token"].tolist() for seed in (1, 2)]
    assert drawn[0] != drawn[1]


def test_an_answer_leans_on_what_tells_it(made: Run) -> None:
    job = forecast.load(made)
    shares: dict[str, list[float]] = {"SOON": [], "LATER": []}
    for patient in job.records.patients[:20]:
        table = forecast.explain(job, patient, "readmission")
        last = table[table["visit"] == 3].set_index("token")["share"]
        for token, found in shares.items():
            found += last[last.index == token].tolist()
    assert np.mean(shares["SOON"]) > np.mean(shares["LATER"])


def test_a_changed_vocabulary_or_other_events_are_refused(made: Run, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(made.path, copied)
    other = Run.open(copied)
    found = json.loads((copied / "provenance.json").read_text())
    found["data"]["vocabulary"] = "0" * 64
    (copied / "provenance.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match="another vocabulary"):
        forecast.load(other)
    config = (copied / "config.yaml").read_text()
    moved = stays(tmp_path / "meds", patients=50)
    (copied / "config.yaml").write_text(config.replace(str(made.config["data"]), str(moved)))
    (copied / "provenance.json").write_text((made.path / "provenance.json").read_text())
    with pytest.raises(DataError, match="not those that the run"):
        forecast.load(other)


@pytest.mark.parametrize(
    "overrides",
    [["how=single"], ["pretrain=false"], ["network=transformer"], ["network=bag"],
     ["shuffle_labels=true"], ["positive_rate=0.3"]],
    ids=lambda overrides: overrides[0],
)  # fmt: skip
def test_every_arm_runs_and_loads(overrides: list[str], quick: Callable[..., Run]) -> None:
    run = quick(*overrides)
    job = forecast.load(run)
    found = forecast.answers(job, "SECRET-001")
    assert set(found) == {"length_of_stay", "readmission"}
    assert all(0 < probability < 1 for probability in found.values())
    single = "how=single" in overrides or "network=bag" in overrides
    assert len(job.phases) == (2 if single else 1)
    assert ("perplexity" in run.metrics) == ("network=bag" not in overrides)


def test_shuffled_labels_are_those_of_others_and_test_keeps_its_own(
    quick: Callable[..., Run],
) -> None:
    job = forecast.load(quick("shuffle_labels=true"))
    test = np.isin(job.samples.patients, job.records.splits.test)
    assert (job.labels[test] == job.samples.labels[test]).all()
    assert (job.labels[~test] != job.samples.labels[~test]).any()
    for task in (0, 1):
        rows = ~test & (job.samples.tasks == task)
        assert job.labels[rows].sum() == job.samples.labels[rows].sum()


def test_nothing_of_test_patients_enters_the_vocabulary(quick: Callable[..., Run]) -> None:
    job = forecast.load(quick("shuffle_labels=true"))
    own = job.records.of(job.records.splits.train)
    assert set(job.vocabulary.codes.values()) <= set(own["code"])
    assert len(job.records.histories(job.records.splits.test, job.vocabulary)) == len(
        job.records.splits.test
    )


def test_few_shots_are_all_that_is_asked_and_the_others_are_read(
    quick: Callable[..., Run],
) -> None:
    run = quick("split={how: few_shot, shots: 2}")
    job, parts = forecast.load(run), run.read_json("splits.json")
    asked = job.samples.patients[job.rows("train", [0, 1])]
    assert set(asked) == set(parts["train"]) and len(parts["train"]) < 10
    held = set(parts["val"]) | set(parts["test"])
    assert set(parts["trained_on"]) == set(range(60)) - held
    assert set(parts["train"]) < set(parts["trained_on"])
    assert len(job.histories(job.records.trained_on)) == len(parts["trained_on"])
    trained = run.read_json("tasks.json")[0]["train"]["n"]
    assert trained <= 3 * len(parts["train"])


def questions(folder: Path, rule: Callable[[int, int], bool]) -> Config:
    """Thirty patients of two stays, long where the rule of patient and stay says so."""
    rows = []
    for number in range(30):
        who, start = {"patient_id": f"p{number:02d}"}, datetime(2020, 1, 1, tzinfo=UTC)
        for visit in range(2):
            end = start + timedelta(days=10 if rule(number, visit) else 3)
            stay = {**who, "encounter_id": f"{number}-{visit}", "source": "encounter"}
            rows.append({**stay, "time": start, "code": "ENCOUNTER//IMP", "end": end})
            start = end + timedelta(days=100)
    found = meds.write(ordered(pl.DataFrame(rows, schema=SCHEMA)), folder, {})
    return Config(data=str(found), tasks=["length_of_stay"])


def test_both_answers_of_every_patient_are_two_answers(tmp_path: Path) -> None:
    records = Records(questions(tmp_path, lambda number, visit: visit == 0))
    assert sorted(records.asked["label"].unique()) == [0, 1]


def test_one_answer_in_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'length_of_stay' has only one value in training"):
        Records(questions(tmp_path, lambda number, visit: True))


def test_a_task_may_stand_in_the_config(data: Path, tmp_path: Path) -> None:
    task = (
        "tasks=[{name: back_soon, anchor: {codes: {prefix: [ENCOUNTER//]}}, cutoff: end + 1s, "
        "label: {codes: {prefix: [ENCOUNTER//]}, until: end + 20d}}]"
    )
    run = launch.run("ehrmamba", data, out=tmp_path, quick=True, overrides=[task])
    assert run.read_json("metrics.json")["classes"] == ["back_soon"]


# The command --------------------------------------------------------------------------------


def test_the_command_answers_explains_and_writes(made: Run) -> None:
    call = ["forecast", str(made.path), "--patient", "SECRET-002", "-n", "7"]
    done = CliRunner().invoke(app, [*call, "--explain", "readmission", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found) == {"answers", "explained", "forecast"} and len(found["forecast"]) == 7
    assert any(row["meaning"] == "a drug for long stays" for row in found["explained"]) or not any(
        row["token"] == "LONG" for row in found["explained"]
    )
    plain = CliRunner().invoke(app, call)
    assert "readmission: 0." in plain.output and "meaning" in plain.output


def test_bad_input_is_named_without_the_patient(made: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["forecast", str(made.path), "--patient", "NOBODY-7"])
    assert done.exit_code == 3 and "no such patient" in done.output
    assert "NOBODY" not in done.output
    call = ["forecast", str(made.path), "--patient", "SECRET-002", "--explain", "readmision"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 2 and "'readmission'" in done.output
    run = Run.create(tmp_path, "other")
    run.start({}, task="classify")
    done = CliRunner().invoke(app, ["forecast", str(run.path), "--patient", "x"])
    assert done.exit_code == 2 and "classify" in done.output


def test_a_bag_neither_writes_nor_explains(quick: Callable[..., Run]) -> None:
    job = forecast.load(quick("network=bag"))
    with pytest.raises(ConfigError, match="bag of codes"):
        forecast.forecast(job, "SECRET-001", 3)
    with pytest.raises(ConfigError, match="bag of codes"):
        forecast.explain(job, "SECRET-001", "readmission")
    with pytest.raises(ConfigError, match="no weights to start"):
        quick("network=bag", "start=folder")


def test_the_report_shows_both_tasks(made: Run) -> None:
    done = CliRunner().invoke(app, ["report", str(made.path)])
    assert done.exit_code == 0, done.output
    page = (made.path / "report.html").read_text()
    assert "length_of_stay" in page and "perplexity" in page
