"""A finished classifier says of new samples what its run would have said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import galenic
from galenic.app.report import write
from galenic.core.errors import ConfigError, DataError, GalenicError, WeightsError
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.pipeline.config import Columns, open_cohort

FAST = ["schedule.epochs=2", "score.resamples=20"]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 visits of 80 patients with numbers, a word, and labels of every kind."""
    draw = np.random.default_rng(0)
    severity = draw.normal(size=160)
    table = pd.DataFrame(
        {
            "pid": [f"P-{row // 2}" for row in range(160)],
            "lactate": severity + draw.normal(size=160) * 0.2,
            "age": draw.integers(20, 90, 160),
            "ward": draw.choice(["north", "south"], 160),
            "died": np.where(severity > 0, "yes", "no"),
            "grade": np.digitize(severity, [-0.6, 0.6]),
            "days": severity * 3 + 10,
            "sepsis": (severity > 0.3).astype(float),
            "stroke": (draw.random(160) > 0.6).astype(float),
        }
    )
    table.loc[::9, "lactate"] = np.nan
    table.loc[::11, "stroke"] = np.nan
    path = tmp_path_factory.mktemp("clinic") / "visits.csv"
    table.to_csv(path, index=False)
    return path


INPUTS = ["lactate", "age", "ward"]
LABELS: dict[str, dict[str, Any]] = {
    "binary": {"label": "died"},
    "multiclass": {"label": "grade", "kind": "multiclass"},
    "ordinal": {"label": "grade", "kind": "ordinal"},
    "continuous": {"label": "days"},
    "multilabel": {"label": ["sepsis", "stroke"]},
}


def trained(recipe: str, clinic: Path, folder: Path, kind: str, *overrides: str) -> Run:
    columns = {"inputs": INPUTS, "patient_id": "pid", **LABELS[kind]}
    return galenic.run(
        recipe, clinic, columns=columns, out=folder, overrides=[*FAST, *overrides], cache=False
    )


def scores_of(run: Run) -> np.ndarray:
    """Of the samples in test, in their order."""
    table = pd.read_parquet(run.path / "predictions.parquet")
    return table[table["split"] == "test"].filter(regex="^score").to_numpy()


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("recipe", ["linear", "knn", "trees"])
def test_the_test_part_is_predicted_as_before_without_the_training_data(
    recipe: str, kind: str, clinic: Path, tmp_path: Path
) -> None:
    own = tmp_path / "visits.csv"
    shutil.copyfile(clinic, own)
    run = trained(recipe, own, tmp_path, kind)
    rows = run.read_json("splits.json")["test"]
    new = tmp_path / "new.csv"
    pd.read_csv(own).iloc[rows].to_csv(new, index=False)
    own.unlink()
    made = galenic.predict(run.path, new, out=tmp_path, columns=LABELS[kind] | {"kind": None})
    np.testing.assert_allclose(scores_of(made), scores_of(run), atol=1e-6)
    for name, before in run.metrics.items():
        assert made.metrics[name].value == pytest.approx(before.value, abs=1e-6), name
    if kind == "binary":
        first, second = (one.read_json("operating.json")[0] for one in (run, made))
        assert first["threshold"] == pytest.approx(second["threshold"], abs=1e-6)
    found = pd.read_csv(made.path / "predictions.csv")
    assert len(found) == len(rows) and found.select_dtypes("number").notna().all().all()


def test_grades_by_ascending_thresholds(clinic: Path, tmp_path: Path) -> None:
    run = trained("linear", clinic, tmp_path, "ordinal", "head.kind=cumulative")
    made = galenic.predict(run.path, clinic, out=tmp_path, columns={"label": "grade"})
    rows = run.read_json("splits.json")["test"]
    np.testing.assert_allclose(scores_of(made)[rows], scores_of(run), atol=1e-6)


@pytest.mark.parametrize("recipe", ["lora", "ssf", "full"])
def test_what_a_tuner_added_is_there(recipe: str, tmp_path: Path) -> None:
    overrides = ["schedule.lr=1e-2", "seed=3"]
    run = galenic.run(recipe, "sample:icd10", out=tmp_path, quick=True, overrides=overrides)
    shown = open_cohort("sample:icd10", Columns(), quick=True).table
    new = tmp_path / "phrases.csv"
    shown[["phrase", "chapter"]].rename(columns={"chapter": "part"}).to_csv(new, index=False)
    made = galenic.predict(run.path, new, out=tmp_path, columns={"label": "part"})
    rows = run.read_json("splits.json")["test"]
    np.testing.assert_allclose(scores_of(made)[rows], scores_of(run), atol=1e-5)
    plain = galenic.run("linear", "sample:icd10", out=tmp_path, quick=True, overrides=["seed=3"])
    assert np.abs(scores_of(plain) - scores_of(run)).max() > 1e-3


def test_its_report_says_whose_prediction_it_is(clinic: Path, tmp_path: Path) -> None:
    run = trained("linear", clinic, tmp_path, "binary")
    table = pd.read_csv(clinic).iloc[:50]
    table.to_csv(tmp_path / "elsewhere.csv", index=False)
    made = galenic.predict(run.path, tmp_path / "elsewhere.csv", out=tmp_path)
    text = write(made.path).read_text()
    assert "Predicted by <code>linear-0001</code>, which was trained on visits.csv" in text
    assert "parameters trained" not in text and not (made.path / "README.md").exists()


def test_rows_that_are_taken_for_patients_are_told_of(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("linear", clinic, tmp_path, "binary")
    new = tmp_path / "new.csv"
    pd.read_csv(clinic).rename(columns={"pid": "fall"}).to_csv(new, index=False)
    told = {}
    for name in ("fall", None):
        tell.cache_clear()
        capsys.readouterr()
        galenic.predict(run.path, new, out=tmp_path, columns={"patient_id": name})
        told[name] = "several samples a patient" in capsys.readouterr().err
    assert told == {"fall": False, None: True}


def test_samples_without_labels_are_predicted_and_not_scored(clinic: Path, tmp_path: Path) -> None:
    run = trained("linear", clinic, tmp_path, "binary")
    table = pd.read_csv(clinic)
    new = tmp_path / "new.csv"
    table.drop(columns=["died", "pid"]).to_csv(new, index=False)
    made = galenic.predict(run.path, new, out=tmp_path)
    assert made.state == "finished" and not (made.path / "metrics.json").exists()
    page = write(made.path).read_text()
    assert "no label was used" in page and "nothing is scored" in page
    found = pd.read_csv(made.path / "predictions.csv")
    assert list(found) == ["row", "predicted", "p_no", "p_yes"] and len(found) == 160
    assert (found["predicted"] == np.where(found["p_yes"] > 0.5, "yes", "no")).all()
    # One class alone, and holes, are no fault of new samples.
    table["died"] = np.where(np.arange(160) % 3 == 0, "yes", None)
    table.to_csv(new, index=False)
    some = galenic.predict(run.path, new, out=tmp_path)
    scored = pd.read_parquet(some.path / "predictions.parquet")
    assert sorted(scored["row"]) == list(range(0, 160, 3))
    assert scored["group"].max() < 80
    assert "P-1" not in (made.path / "predictions.csv").read_text()


def test_its_own_samples_are_named(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("linear", clinic, tmp_path, "binary")
    tell.cache_clear()
    galenic.predict(run.path, clinic, out=tmp_path, columns=LABELS["binary"])
    assert "trained on these very samples" in capsys.readouterr().err


def test_what_cannot_be_predicted_is_named(clinic: Path, tmp_path: Path) -> None:
    run = trained("linear", clinic, tmp_path, "binary")
    table = pd.read_csv(clinic)

    def refused(kind: type[GalenicError], words: str, table: pd.DataFrame, **columns: Any) -> None:
        new = tmp_path / "new.csv"
        table.to_csv(new, index=False)
        with pytest.raises(kind, match=words):
            galenic.predict(run.path, new, out=tmp_path, columns=columns)

    refused(DataError, "no column 'lactate'", table.rename(columns={"lactate": "lactat"}))
    refused(DataError, "'maybe' is none of the classes", table.assign(died="maybe"))
    refused(DataError, "no rows", table.iloc[:0])
    refused(DataError, "no column 'dead'", table, label="dead")
    refused(DataError, "cell is no number", table.assign(age="old"))
    with pytest.raises(DataError, match=r"no file 'nothing\.csv'"):
        galenic.predict(run.path, tmp_path / "nothing.csv", out=tmp_path)
    pretrained = galenic.predict(run.path, clinic, out=tmp_path)
    with pytest.raises(ConfigError, match="of the task 'predict'"):
        galenic.predict(pretrained.path, clinic, out=tmp_path)
    run.update_provenance(weights={"fingerprint": "another"})
    with pytest.raises(WeightsError, match="not the network that"):
        galenic.predict(run.path, clinic, out=tmp_path)
