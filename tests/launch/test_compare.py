"""Several recipes on the same patients."""

from __future__ import annotations

from pathlib import Path

import pytest

from galenic import launch
from galenic.core.errors import GalenicError


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
