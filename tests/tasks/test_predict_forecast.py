"""A finished run over histories says of other events what it would have said of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

import galenic
from galenic.app.cli import app
from galenic.core.errors import ConfigError, DataError, GalenicError, WeightsError
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.data.events import definitions, ordered
from galenic.data.events.schema import BIRTH, SCHEMA
from galenic.tasks._forecast_job import TUNED, VOCABULARY

START = datetime(2024, 1, 1, tzinfo=UTC)
COUNT = 40
TASKS = ["length_of_stay", "readmission"]
SMALL = [
    f"tasks=[{','.join(TASKS)}]", "sizes.layers=1", "sizes.width=16", "sizes.dropout=0", "length=32",
    "tokens.min_patients=2", "pretraining.epochs=10", "pretraining.lr=1e-2", "schedule.epochs=10",
    "schedule.lr=1e-2", "schedule.patience=null", "schedule.batch_size=8", "score.resamples=20",
]  # fmt: skip
KINDS = {
    "mamba": [],
    "single": ["how=single", "pretrain=false"],
    "bag": ["network=bag"],
}
SCORE = {"resamples": 20}


def event(patient: str, at: datetime, code: str, source: str, **more: Any) -> dict[str, Any]:
    found = {"patient_id": patient, "time": at, "code": code, "source": source}
    return dict.fromkeys(SCHEMA) | found | more


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    """Three stays each; a drug tells a long one, a value a return, and one code is one patient's."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        who, start = f"SECRET-{number:03d}", START
        rows.append(event(who, start - timedelta(days=18_000), BIRTH, "patient"))
        for visit in range(3):
            long, soon = draw.random() < 0.5, draw.random() < 0.5
            end = start + timedelta(days=10 if long else 3)
            stay = {"encounter_id": f"{who}-{visit}"}
            rows.append(event(who, start, "ENCOUNTER//IMP", "encounter", end=end, **stay))
            drugs = ["LONG" if long else "SHORT", "a", "b", f"ODD//{number}"]
            for place, code in enumerate(drugs):
                at = start + timedelta(hours=1 + place)
                rows.append(event(who, at, code, "medication", **stay))
            at, value = start + timedelta(hours=6), soon * 4 + draw.normal()
            rows.append(event(who, at, "crp", "lab", value=value, unit="mg/L", **stay))
            start = end + timedelta(days=12 if soon else 200)
        # All are followed to one day, so that each alone has the answers that all have together.
        rows.append(event(who, START + timedelta(days=900), "SEEN", "other"))
    return ordered(pl.DataFrame(rows, schema=SCHEMA))


def written(events: pl.DataFrame, folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    ordered(events).write_parquet(folder / "data" / "0.parquet")
    return folder


@pytest.fixture(scope="module")
def runs(events: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A finished run of each kind, made when first asked for; its data are gone."""

    @cache
    def get(kind: str) -> Run:
        folder = tmp_path_factory.mktemp(kind)
        data = written(events, folder / "data")
        run = galenic.run("ehrmamba", data, out=folder, overrides=[*SMALL, *KINDS[kind]])
        shutil.rmtree(data)
        return run

    return get


@pytest.fixture
def held(events: pl.DataFrame, runs: Callable[[str], Run]) -> pl.DataFrame:
    """Events of the test patients."""
    everyone = events["patient_id"].unique().sort().to_list()
    names = [everyone[number] for number in runs("mamba").read_json("splits.json")["test"]]
    return events.filter(pl.col("patient_id").is_in(names))


def own(run: Run) -> pd.DataFrame:
    found = pd.read_parquet(run.path / "predictions.parquet")
    return found[found["split"] == "test"]


def table_of(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.path / "predictions.csv")


def predicted(run: Run, events: Path, out: Path, **more: Any) -> Run:
    return galenic.predict(run.path, events, out=out, **{"score": SCORE, **more})


def same(one: Any, other: Any) -> bool:
    """Whether two JSON documents agree to 1e-5."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == pytest.approx(other, abs=1e-5) if isinstance(one, float) else one == other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_part_is_answered_as_before_without_the_training_data(
    kind: str, held: pl.DataFrame, runs: Callable[[str], Run], tmp_path: Path
) -> None:
    run = runs(kind)
    made = predicted(run, written(held, tmp_path / "new"), tmp_path)
    before, here = own(run), own(made)
    scores = before.filter(regex="^score").to_numpy()
    told = before.filter(regex="^label").notna().to_numpy()
    assert all(np.ptp(scores[told[:, task], task]) > 1e-3 for task in range(len(TASKS)))
    np.testing.assert_allclose(here.filter(regex="^score").to_numpy(), scores, rtol=0, atol=1e-5)
    for name in ("metrics.json", "tasks.json", "labels.json", "calibration.json"):
        assert same(run.read_json(name), made.read_json(name)), name
    table = table_of(made)
    assert list(table) == ["row", "patient", "visit", "task", "p"]
    assert len(table) == len(before) and set(table["visit"]) == {1, 2, 3}
    place = table["task"].map(TASKS.index).to_numpy()
    assert told[np.arange(len(table)), place].all()
    np.testing.assert_allclose(table["p"], scores[np.arange(len(table)), place], atol=1e-5)


def test_the_report_says_whose_answers_they_are_and_nobody_is_named(
    held: pl.DataFrame, runs: Callable[[str], Run], tmp_path: Path
) -> None:
    run = runs("mamba")
    words = ["predict", str(run.path), "--data", str(written(held, tmp_path / "new"))]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path), "--name", "made"])
    assert done.exit_code == 0, done.output
    assert "predictions.csv" in done.output and "auroc" in done.output
    page = (tmp_path / "made" / "report.html").read_text()
    assert f"Predicted by <code>{run.path.name}</code>" in page
    assert "length of stay" in page and "perplexity" in page
    for path in (tmp_path / "made").rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path.name
    assert "SECRET" not in done.output
    assert "2024-" not in (tmp_path / "made" / "predictions.csv").read_text()


def known_by(events: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """What is written at a time; stays that go on have no end yet."""
    past = events.filter(pl.col("time") <= now)
    past = past.with_columns(end=pl.when(pl.col("end") <= now).then("end"))
    seen = event(past["patient_id"][0], now, "SEEN", "other")
    return ordered(pl.concat([past, pl.DataFrame([seen], schema=SCHEMA)]))


def test_answers_that_nobody_knows_yet_are_predicted_and_not_scored(
    held: pl.DataFrame, runs: Callable[[str], Run], tmp_path: Path
) -> None:
    run, keys = runs("mamba"), ["patient", "task", "visit"]
    later = table_of(predicted(run, written(held, tmp_path / "later"), tmp_path))
    # Some are in hospital, and some are out and may still come back.
    early = known_by(held, START + timedelta(days=12))
    made = predicted(run, written(early, tmp_path / "early"), tmp_path)
    now = table_of(made)
    assert 0 < len(own(made)) < len(now)
    assert set(now["task"]) == set(TASKS) and (now["visit"] == 1).all()
    both = now.merge(later, on=keys, how="left", suffixes=("", "_later"), validate="1:1")
    np.testing.assert_allclose(both["p"], both["p_later"], rtol=0, atol=1e-5)
    # On the second day nobody has an answer to anything.
    first = known_by(held, START + timedelta(days=2))
    made = predicted(run, written(first, tmp_path / "first"), tmp_path)
    assert made.state == "finished" and not (made.path / "metrics.json").exists()
    blind = table_of(made)
    assert set(blind["task"]) == {"length_of_stay"}
    assert len(blind) == held["patient_id"].n_unique()
    stays = later[(later["task"] == "length_of_stay") & (later["visit"] == 1)]
    np.testing.assert_allclose(blind["p"], stays["p"], rtol=0, atol=1e-5)
    done = CliRunner().invoke(app, ["report", str(made.path)])
    assert done.exit_code == 0, done.output
    assert "nothing is scored" in (made.path / "report.html").read_text(encoding="utf-8")
    # And before the first day is over nobody is asked.
    dawn = known_by(held, START + timedelta(hours=12))
    with pytest.raises(DataError, match="No patient can be asked"):
        predicted(run, written(dawn, tmp_path / "dawn"), tmp_path)


def test_codes_and_units_that_the_run_does_not_know_are_those_it_did_not_know_in_training(
    held: pl.DataFrame,
    runs: Callable[[str], Run],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = runs("mamba")

    def answers(name: str, code: pl.Expr, unit: str = "mg/L") -> np.ndarray:
        lab = pl.when(pl.col("code") == "crp").then(pl.lit(unit)).otherwise("unit")
        data = written(held.with_columns(code=code, unit=lab), tmp_path / name)
        return table_of(predicted(run, data, tmp_path))["p"].to_numpy()

    code = pl.col("code")
    plain = answers("plain", code)
    # What only one patient has was unknown in training too.
    np.testing.assert_array_equal(answers("odd", code.str.replace("ODD//", "NEW//")), plain)
    tell.cache_clear()
    capsys.readouterr()
    unknown = answers("unknown", code.replace("crp", "CRP"))
    told = " ".join(capsys.readouterr().err.split())
    count = held.filter(code == "crp").height + held.filter(code.str.starts_with("ODD")).height
    assert f"{count} of " in told and "are [UNK] to it: CRP, ODD//" in told
    np.testing.assert_array_equal(answers("unit", code, "mg/dL"), unknown)
    assert np.abs(unknown - plain).max() > 1e-2
    alien = pl.when(pl.col("source").is_in(["medication", "lab"])).then("X//" + code)
    with pytest.raises(DataError, match=r"none of the codes(.|\n)*LONG, SHORT, a, b, crp"):
        answers("alien", alien.otherwise(code))


def test_tables_are_read_by_the_mapping_of_the_run_and_its_definition_need_not_be_there(
    events: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = events["source"].unique().to_list()
    row = {"code": "{what}", "time": "{when}", "end": "{until}", "encounter": "{stay}",
           "value": "{number}", "unit": "{unit}"}  # fmt: skip
    each = [row | {"source": kind, "where": {"kind": [kind]}} for kind in kinds]
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(
        yaml.safe_dump({"tables": [{"file": "rows", "patient": "{who}", "events": each}]})
    )

    def clock(column: str) -> pl.Expr:
        here = pl.col(column).dt.convert_time_zone("Asia/Tokyo")
        return here.dt.strftime("%Y-%m-%d %H:%M:%S")

    tables = tmp_path / "tables"
    tables.mkdir()
    events.select(
        who="patient_id", what="code", when=clock("time"), until=clock("end"), number="value",
        unit="unit", stay="encounter_id", kind="source",
    ).write_csv(tables / "rows.csv")  # fmt: skip
    task = definitions.load("length_of_stay").model_dump(mode="json") | {"name": "long"}
    definition = tmp_path / "long.yaml"
    definition.write_text(yaml.safe_dump(task))
    run = galenic.run(
        "ehrmamba", tables, mapping=str(mapping), timezone="Asia/Tokyo", out=tmp_path, quick=True,
        overrides=[*SMALL, f"tasks=[{definition}]"],
    )  # fmt: skip
    definition.unlink()
    tables = tables.rename(tmp_path / "elsewhere")
    tell.cache_clear()
    made = predicted(run, tables, tmp_path)
    assert "trained on these very samples" in " ".join(capsys.readouterr().err.split())
    assert set(table_of(made)["task"]) == {"long"}
    assert made.read_json("metrics.json")["classes"] == ["long"]
    rows = np.isin(own(made)["group"], run.read_json("splits.json")["test"])
    scores = [own(one).filter(regex="^score").to_numpy() for one in (made, run)]
    np.testing.assert_allclose(scores[0][rows], scores[1], rtol=0, atol=1e-5)
    plain = predicted(run, written(events, tmp_path / "plain"), tmp_path, mapping="")
    pd.testing.assert_frame_equal(table_of(plain), table_of(made))


def test_a_folder_that_is_not_whole_is_refused(
    held: pl.DataFrame, runs: Callable[[str], Run], tmp_path: Path
) -> None:
    data = written(held, tmp_path / "new")

    def refused(
        kind: type[GalenicError], words: str, name: str, change: Callable[[Path], object]
    ) -> None:
        folder = shutil.copytree(runs("mamba").path, tmp_path / name)
        change(folder)
        left = {path.name for path in folder.iterdir()}
        with pytest.raises(kind, match=words):
            predicted(Run.open(folder), data, tmp_path)
        assert {path.name for path in folder.iterdir()} == left

    refused(
        DataError, "another vocabulary", "vocabulary",
        lambda folder: shutil.copyfile(runs("bag").path / VOCABULARY, folder / VOCABULARY)
        and Run(folder).update_provenance(data={"vocabulary": "0" * 64}),
    )  # fmt: skip
    refused(
        DataError,
        "vocabulary cannot be read",
        "lost",
        lambda folder: (folder / VOCABULARY).unlink(),
    )
    refused(
        WeightsError, f"{TUNED} is not there, is damaged", "cut",
        lambda folder: (folder / TUNED).write_bytes((folder / TUNED).read_bytes()[:-9]),
    )  # fmt: skip
    refused(
        WeightsError, "or holds another network", "other",
        lambda folder: shutil.copyfile(runs("single").path / TUNED, folder / TUNED),
    )  # fmt: skip
    refused(WeightsError, TUNED, "gone", lambda folder: (folder / TUNED).unlink())


def test_what_is_asked_of_the_wrong_run_is_named(
    held: pl.DataFrame, runs: Callable[[str], Run], tmp_path: Path
) -> None:
    run, data = runs("mamba"), written(held, tmp_path / "new")
    with pytest.raises(ConfigError, match=r"reads no manifest(.|\n)*where: stays"):
        predicted(run, data, tmp_path, stays="stays.csv")
    with pytest.raises(ConfigError, match=r"reads no manifest(.|\n)*where: columns"):
        predicted(run, data, tmp_path, columns={"label": "died"})
    with pytest.raises(DataError, match="no 'nothing'"):
        predicted(run, tmp_path / "nothing", tmp_path)
