"""Learning curves: nested draws, the same test patients, intervals over seeds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from galenic import launch
from galenic.app import report
from galenic.core.errors import ConfigError, DataError, GalenicError
from galenic.core.run import Run
from galenic.core.seeds import mean_interval
from galenic.launch.curve import Arm, curve, resume

DATA = "sample:breast-fna"


def test_a_curve_holds_a_point_a_recipe_and_count_and_has_a_report(tmp_path: Path) -> None:
    made = curve(["linear", "knn"], DATA, shots=[4, 1], seeds=2, out=tmp_path)
    found = made.read_json("curve.json")
    assert [(p["recipe"], p["shots"]) for p in found["points"]] == [
        *[("linear", 1), ("linear", 4)],
        *[("knn", 1), ("knn", 4)],
    ]
    for point in found["points"]:
        assert point["value"] == pytest.approx(statistics.fmean(point["per_seed"]))
        assert point["low"] <= point["value"] <= point["high"]
    assert not (made.path / "work").exists()
    page = report.write(made.path).read_text(encoding="utf-8")
    assert page.count("<polyline") == 2
    assert "4 a class" in page


def test_fewer_patients_are_a_subset_of_more_and_the_test_patients_stay(tmp_path: Path) -> None:
    def parts(shots: int) -> dict[str, set[int]]:
        done = launch.run(
            "knn",
            DATA,
            path=tmp_path / str(shots),
            out=tmp_path,
            seed=3,
            overrides=["split.how=few_shot", f"split.shots={shots}", "score.resamples=0"],
        )
        found = done.read_json("splits.json")
        return {name: set(found[name]) for name in ("train", "test")}

    few, more = parts(2), parts(8)
    assert few["train"] < more["train"]
    assert few["test"] == more["test"]


def test_a_seed_that_cannot_be_told_leaves_a_point_without_a_figure(tmp_path: Path) -> None:
    # One ill patient is trained on and the other judges: none is left to test.
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"])
    table["target"] = ["ill", *["well"] * 58, "ill"]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    made = curve(
        ["knn"], tmp_path / "cohort.csv", shots=[2], seeds=2, out=tmp_path,
        columns={"label": "target"},
    )  # fmt: skip
    [point] = made.read_json("curve.json")["points"]
    assert made.state == "finished"
    assert (point["value"], point["low"], point["per_seed"]) == (None, None, [None, None])
    assert "knn" in report.write(made.path).read_text(encoding="utf-8")


def test_a_curve_that_breaks_says_so_in_its_folder(tmp_path: Path) -> None:
    with pytest.raises(GalenicError):
        curve(["lora"], DATA, shots=[1], seeds=2, out=tmp_path)
    assert Run.open(tmp_path / "curve-0001").state == "failed"


@pytest.mark.parametrize(("shots", "seeds"), [([1, 2], 1), ([0, 1], 2), ([], 2)])
def test_what_gives_no_interval_is_refused(tmp_path: Path, shots: list[int], seeds: int) -> None:
    with pytest.raises(ConfigError, match="at least 2 seeds"):
        curve(["linear"], DATA, shots=shots, seeds=seeds, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "override", ["split.how=given", "split.shots=3", "split={how: given, seed: 1}"]
)
def test_what_a_curve_sets_itself_is_not_overruled_silently(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="set by `galenic curve` itself"):
        curve(["knn"], DATA, shots=[1], out=tmp_path, overrides=[override])
    with pytest.raises(ConfigError, match="set by `galenic curve` itself"):
        curve([Arm("own", "knn", (override,))], DATA, shots=[1], out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("finished", [1, 2])
def test_points_of_two_manifests_are_not_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"])
    table["target"] = ["ill", "well"] * 20
    table.to_csv(tmp_path / "cohort.csv", index=False)
    whole, started = launch.run, []

    def run(*given: Any, **options: Any) -> Run:
        started.append(given)
        if len(started) == finished + 1:
            raise KeyboardInterrupt
        return whole(*given, **options)

    monkeypatch.setattr(launch, "run", run)
    with pytest.raises(KeyboardInterrupt):
        curve(["knn", "linear"], tmp_path / "cohort.csv", shots=[2], seeds=2, out=tmp_path,
              columns={"label": "target"})  # fmt: skip
    left = Run.open(tmp_path / "curve-0001")
    assert left.read_json("status.json")["message"] == "interrupted"
    table["target"] = rng.permutation(table["target"])
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(DataError, match="manifest has changed") as caught:
        resume(left.path)
    assert caught.value.where == "cohort.csv"
    assert left.state == "failed" and not (left.path / "curve.json").exists()


def test_arms_that_read_other_columns_stand_in_one_curve(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"])
    table["one"], table["two"] = ["ill", "well"] * 20, ["no", "no", "yes", "yes"] * 10
    table.to_csv(tmp_path / "cohort.csv", index=False)
    arms = [Arm(name, "knn", (f"columns.label={name}",)) for name in ("one", "two")]
    made = curve(arms, tmp_path / "cohort.csv", shots=[2], seeds=2, out=tmp_path)
    assert len(made.read_json("curve.json")["points"]) == 2


def test_one_blank_seed_blanks_the_mean() -> None:
    found = mean_interval([0.1, float("nan"), 0.3])
    assert np.isnan([found["value"], found["low"], found["high"]]).all()


def test_the_interval_over_seeds_is_students() -> None:
    found = mean_interval([0.1, 0.2, 0.3])
    # t(0.975, 2) = 4.302653
    half = 4.302653 * 0.1 / 3**0.5
    assert found["low"] == pytest.approx(0.2 - half, abs=1e-6)
    assert found["high"] == pytest.approx(0.2 + half, abs=1e-6)
