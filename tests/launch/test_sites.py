"""Sites held out: whole, each once, with the mean and the worst."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

from galenic import launch
from galenic.app import report
from galenic.app.cli import app
from galenic.core.errors import ConfigError, DataError, RunError
from galenic.core.run import Run
from galenic.core.sampling import EpochBatches, EpochSampler
from galenic.data.cohort import Cohort
from galenic.data.splits import SplitConfig, make_splits
from galenic.launch import curve as curves
from galenic.launch import sites as held
from galenic.launch.sites import over_sites, sites
from galenic.pipeline.balance import balance_of


@pytest.fixture(scope="module")
def masses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real nuclei; the hospital is a tercile of size, so that hospitals truly differ."""
    found = load_breast_cancer(as_frame=True)
    table = found.data.iloc[:, :6].copy()
    size = pd.qcut(table["mean radius"], 3, labels=["north 1", "south", "it's east"])
    table["hospital"] = size.astype(str).mask(table.index % 40 == 0, "tiny")
    table["diagnosis"] = np.where(found.target == 1, "benign", "malignant")
    path = tmp_path_factory.mktemp("sites") / "masses.csv"
    table.to_csv(path, index=False)
    return path


COLUMNS = {"label": "diagnosis", "site": "hospital"}
SITES = ["north 1", "south", "it's east"]
FAST = ["schedule.epochs=3"]


def test_every_site_is_held_out_once_and_has_a_report(masses: Path, tmp_path: Path) -> None:
    made = sites(
        ["linear", "knn"], masses, seeds=2, smallest=30, out=tmp_path, columns=COLUMNS,
        overrides=FAST,
    )  # fmt: skip
    found = made.read_json("sites.json")
    assert found["sites"] == ["it's east", "north 1", "south"]
    for row in found["summary"]:
        own = [p["per_seed"] for p in found["points"] if p["recipe"] == row["recipe"]]
        assert row["mean"]["per_seed"] == pytest.approx(np.mean(own, axis=0).tolist())
        assert row["worst"]["per_seed"] == np.min(own, axis=0).tolist()
    page = report.write(made.path).read_text(encoding="utf-8")
    assert "worst" in page
    assert "it&#39;s east" in page


def test_the_site_is_test_and_nothing_of_it_is_trained_on(masses: Path, tmp_path: Path) -> None:
    run = launch.run(
        "linear", masses, out=tmp_path, columns=COLUMNS,
        overrides=[*FAST, "split.how=leave_site_out", "split.site=south", "schedule.balance=site"],
    )  # fmt: skip
    parts = run.read_json("splits.json")
    table = pd.read_csv(masses)
    assert set(table["hospital"].iloc[parts["test"]]) == {"south"}
    for part in ("train", "val"):
        assert "south" not in set(table["hospital"].iloc[parts[part]])


def test_every_batch_holds_the_sites_in_equal_share(masses: Path) -> None:
    cohort = Cohort.open(masses, **COLUMNS)
    splits = make_splits(cohort, SplitConfig(how="leave_site_out", site="south"), 0)
    rows = splits.train
    drawn = balance_of("site", cohort, rows, cohort.targets()[rows])
    assert drawn.weights is None
    order = EpochSampler(len(rows), 0, groups=drawn.groups, batch_size=12)
    for batch in EpochBatches(order, 12):
        counts = Counter(cohort.table["hospital"].iloc[rows[batch]])
        assert "south" not in counts
        if len(batch) == 12:
            assert counts == {"north 1": 4, "it's east": 4, "tiny": 4}


def test_the_worst_follows_the_metric() -> None:
    values = [[0.5, 0.9], [0.7, 0.6]]
    assert over_sites(values, "auroc")["worst"]["per_seed"] == [0.5, 0.6]
    assert over_sites(values, "rmse")["worst"]["per_seed"] == [0.7, 0.9]


def test_what_says_nothing_about_sites_is_refused(masses: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="interval"):
        sites(["linear"], masses, seeds=1, out=tmp_path, columns=COLUMNS)
    for override in ("split.how=given", "split.site=south"):
        with pytest.raises(ConfigError, match="set by `galenic sites` itself"):
            sites(["linear"], masses, out=tmp_path, columns=COLUMNS, overrides=[override])
    with pytest.raises(DataError, match="no column of sites"):
        sites(["linear"], "sample:diabetes", out=tmp_path)
    with pytest.raises(DataError, match="0 site"):
        sites(["linear"], masses, smallest=500, out=tmp_path, columns=COLUMNS)
    assert not list(tmp_path.iterdir())


def test_balance_by_site_needs_sites(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column"):
        launch.run("linear", "sample:breast-fna", out=tmp_path, overrides=["schedule.balance=site"])


def test_the_command_prints_the_mean_and_the_worst(masses: Path, tmp_path: Path) -> None:
    words = ["sites", "knn", "--data", str(masses), "--label", "diagnosis", "--site", "hospital"]
    done = CliRunner().invoke(
        app, [*words, "--smallest", "30", "--seeds", "2", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "worst" in done.output
    assert json.loads((tmp_path / "sites-0001" / "sites.json").read_text())["sites"]
    wrong = CliRunner().invoke(app, [*words[:-1], "hopsital", "--out", str(tmp_path)])
    assert wrong.exit_code == 3
    assert "hospital" in wrong.output


def cut_off_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let so many runs finish, then pull the plug; what was started is listed."""
    started: list[str] = []
    whole = launch.run

    def run(recipe: str, data: Any = None, **options: Any) -> Run:
        started.append(recipe)
        if len(started) == count + 1:
            raise KeyboardInterrupt
        return whole(recipe, data, **options)

    monkeypatch.setattr(launch, "run", run)
    return started


def test_what_was_cut_off_goes_on_and_repeats_nothing(
    masses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {"seeds": 2, "smallest": 30, "columns": COLUMNS, "overrides": FAST}
    straight = sites(["knn"], masses, out=tmp_path / "a", **told).read_json("sites.json")
    started = cut_off_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sites(["knn"], masses, out=tmp_path / "b", **told)
    left = Run.open(tmp_path / "b" / "sites-0001")
    assert left.state == "failed"
    started.clear()
    made = held.resume(left.path)
    assert len(started) == 3
    found = made.read_json("sites.json")
    assert found["points"] == straight["points"]
    assert found["summary"] == straight["summary"]
    assert made.state == "finished"
    assert not list(made.path.glob("done"))
    with pytest.raises(RunError, match="finished"):
        held.resume(left.path)
    with pytest.raises(ConfigError, match="galenic sites"):
        curves.resume(left.path)


def test_another_manifest_is_not_gone_on_with(
    masses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.csv"
    table = pd.read_csv(masses)
    table.to_csv(copy, index=False)
    cut_off_after(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sites(["knn"], copy, seeds=2, smallest=30, columns=COLUMNS, out=tmp_path)
    table.assign(hospital=table["hospital"].iloc[::-1].to_numpy()).to_csv(copy, index=False)
    with pytest.raises(DataError, match="changed"):
        held.resume(tmp_path / "sites-0001")


def test_a_site_that_lacks_a_class_is_named(masses: Path, tmp_path: Path) -> None:
    table = pd.read_csv(masses)
    benign = (table["hospital"] == "south") & (table["diagnosis"] == "benign")
    lacking = tmp_path / "lacking.csv"
    table[~benign].to_csv(lacking, index=False)
    with pytest.raises(DataError, match="'south' lacks 'benign'"):
        sites(["knn"], lacking, smallest=30, columns=COLUMNS, out=tmp_path)
    several = table.assign(big=(table["mean area"] > 600).astype(int), odd=table.index % 2)
    several.to_csv(lacking, index=False)
    columns = {"label": ["big", "odd"], "site": "hospital"}
    with pytest.raises(DataError, match="'north 1' lacks 'big'") as error:
        sites(["knn"], lacking, smallest=30, columns=columns, out=tmp_path)
    assert "odd" not in error.value.found


@pytest.mark.parametrize(
    ("codes", "called"),
    [([0.0, 1.0, 3.0], ["0", "1", "3"]), (["1e3", "no", "{x: y}"], ["1e3", "no", "{x: y}"])],
)
def test_a_site_is_text_whatever_it_is_called(
    masses: Path, tmp_path: Path, codes: list[Any], called: list[str]
) -> None:
    table = pd.read_csv(masses)
    table["hospital"] = table["hospital"].map(dict(zip(SITES, codes, strict=True)))
    table.to_csv(tmp_path / "named.csv", index=False)
    made = sites(["knn"], tmp_path / "named.csv", seeds=2, columns=COLUMNS, out=tmp_path)
    assert made.read_json("sites.json")["sites"] == called


def test_a_row_of_unknown_site_is_used_nowhere(masses: Path) -> None:
    table = pd.read_csv(masses)
    table.loc[::7, "hospital"] = None
    cohort = Cohort.open(table, **COLUMNS)
    assert held.held_out(cohort, 30) == ["it's east", "north 1", "south"]
    parts = make_splits(cohort, SplitConfig(how="leave_site_out", site="south"), 0)
    used = np.concatenate([parts.train, parts.val, parts.test])
    assert not table["hospital"].iloc[used].isna().any()
    known = table["hospital"].notna()
    assert len(used) == known.sum()
