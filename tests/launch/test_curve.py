"""Learning curves: nested draws, the same test patients, intervals over seeds."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from galenic import launch
from galenic.app import report
from galenic.core.errors import ConfigError, GalenicError
from galenic.core.run import Run
from galenic.core.seeds import mean_interval
from galenic.launch.curve import curve

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


def test_a_curve_that_breaks_says_so_in_its_folder(tmp_path: Path) -> None:
    with pytest.raises(GalenicError):
        curve(["lora"], DATA, shots=[1], seeds=2, out=tmp_path)
    assert Run.open(tmp_path / "curve-0001").state == "failed"


@pytest.mark.parametrize(("shots", "seeds"), [([1, 2], 1), ([0, 1], 2), ([], 2)])
def test_what_gives_no_interval_is_refused(tmp_path: Path, shots: list[int], seeds: int) -> None:
    with pytest.raises(ConfigError, match="at least 2 seeds"):
        curve(["linear"], DATA, shots=shots, seeds=seeds, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_interval_over_seeds_is_students() -> None:
    found = mean_interval([0.1, 0.2, 0.3])
    # t(0.975, 2) = 4.302653
    half = 4.302653 * 0.1 / 3**0.5
    assert found["low"] == pytest.approx(0.2 - half, abs=1e-6)
    assert found["high"] == pytest.approx(0.2 + half, abs=1e-6)
