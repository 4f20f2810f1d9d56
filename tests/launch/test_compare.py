"""Several recipes on the same patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from galenic import launch
from galenic.core.errors import GalenicError
from galenic.core.recipes import open_recipe
from galenic.core.run import Run
from galenic.launch.board import board


def test_arms_whose_states_serve_others_run_first(tmp_path: Path, monkeypatch) -> None:
    asked: list[str] = []

    def refuse(recipe: str, *_: object, **__: object) -> None:
        asked.append(recipe)
        raise GalenicError(f"no {recipe}")

    monkeypatch.setattr(launch, "run", refuse)
    with pytest.raises(GalenicError, match="no unipt"):
        launch.compare(["knn", "linear", "unipt", "lora", "lst"], "sample:icd10", out=tmp_path)
    assert asked == ["unipt", "lst", "knn", "linear", "lora"]


def test_an_arm_without_a_tuner_of_that_name_fails_alone(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("recipe: wrong\ntask: classify\nconfig: {tuner: {method: lorra}}\n")
    done = launch.compare(["knn", str(wrong)], "sample:breast-fna", out=tmp_path, quick=True)
    assert [row["recipe"] for row in done.rows if not row.get("error")] == ["knn"]
    assert "lorra" in str(done.board)


@pytest.mark.parametrize(
    ("fault", "said"),
    [(KeyboardInterrupt(), "interrupted"), (GalenicError("No knn."), "No knn.")],
)
def test_a_comparison_that_was_cut_off_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(launch, "run", refuse)
    with pytest.raises(type(fault)):
        launch.compare(["knn"], "sample:breast-fna", out=tmp_path)
    status = Run.open(tmp_path / "compare-0001").read_json("status.json")
    assert (status["state"], status["message"]) == ("failed", said)


def test_an_arm_without_the_metric_is_last_and_the_others_are_compared(tmp_path: Path) -> None:
    values = {"knn": None, "linear": 0.7, "lora": 0.9}
    finished = {
        name: (open_recipe(name), _finished(tmp_path / name, value, trainable))
        for trainable, (name, value) in enumerate(values.items())
    }
    found = board(finished, {})
    assert [row["recipe"] for row in found["rows"]] == ["lora", "linear", "knn"]
    assert [row["pareto"] for row in found["rows"]] == [True, True, False]
    assert list(found["notes"]) == ["knn"] and "auroc is not defined" in found["notes"]["knn"]
    assert [(gap["a"], gap["b"]) for gap in found["differences"]] == [("lora", "linear")]


def test_test_patients_of_one_class_leave_the_leaderboard_standing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"])
    table["split"] = ["train"] * 30 + ["val"] * 15 + ["test"] * 15
    table["target"] = ["ill", "well"] * 22 + ["well"] * 16
    table.to_csv(tmp_path / "cohort.csv", index=False)
    done = launch.compare(
        ["knn", "linear"], tmp_path / "cohort.csv", out=tmp_path, quick=True,
        columns={"label": "target", "split": "split"},
    )  # fmt: skip
    assert [row["metrics"]["auroc"]["value"] for row in done.rows] == [None, None]
    assert set(done.board["notes"]) == {"knn", "linear"}
    assert Run.open(done.path).read_json("leaderboard.json")["differences"] == []


def _finished(path: Path, value: float | None, trainable: int) -> Run:
    """A run of six test patients, of which only the table, the metric and the cost are asked."""
    made = Run.create(path.parent, path.name, path=path)
    config: dict[str, Any] = {"score": {"resamples": 5, "level": 0.95}}
    weights = {"backbone": "builtin:table"}
    made.start(config, recipe=path.name, task="classify", seed=0, data={"n": 6}, weights=weights)
    test = {"auroc": {"value": value}}
    made.write_json("metrics.json", {"main": "auroc", "kind": "binary", "test": test})
    made.write_json("cost.json", {"trainable": trainable})
    columns = {"row": range(6), "group": range(6), "split": "test", "label": [0, 1] * 3}
    made.write_table("predictions.parquet", pd.DataFrame({**columns, "score_0": np.arange(6) / 6}))
    made.finish()
    return made
