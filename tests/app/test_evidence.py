"""Experiments whose arms go on from other arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from galenic import launch
from galenic.app.evidence import experiment
from galenic.app.evidence.experiment import Experiment, rehearse, run_experiment
from galenic.app.evidence.page import evidence_page, summary_table
from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.run import Run

EXPERIMENT: dict[str, Any] = {
    "slug": "x",
    "claim": "Going on helps.",
    "data": [{"name": "d", "source": "d.csv", "license": "none", "overrides": ["a=1"]}],
    "backbone": {"name": "b", "pretrained_on": "nothing"},
    "metric": "auroc",
    "seeds": [0, 1, 2],
    "arms": [
        {"name": "first", "role": "stage", "recipe": "pre"},
        {"name": "second", "role": "stage", "recipe": "pre", "after": {"arm": "first"}},
        {"name": "ours", "role": "method", "recipe": "fine", "after": {"arm": "second"}},
        {"name": "head", "role": "ablation", "recipe": "fine",
         "after": {"arm": "first", "key": "head.grow_from"}},
        {"name": "plain", "role": "baseline", "recipe": "fine"},
    ],
    "expect": [{"a": "ours", "b": "plain"}],
    "control_ceiling": 0.6,
}  # fmt: skip


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was run; a stage has a loss, an arm that goes on is a little better."""
    made: list[dict[str, Any]] = []

    def run(recipe: str, source: str, *, overrides: list[str], path: Path, **more: Any) -> Run:
        made.append({"recipe": recipe, "overrides": overrides, "path": path, **more})
        found = Run.create(path.parent, recipe, path=path)
        found.start({}, recipe=recipe, task="t", seed=more["seed"], data={"n": 4, "patients": 2})
        better = 0.1 * any(text.startswith("backbone=") for text in overrides)
        name = "loss" if recipe == "pre" else "auroc"
        value = {"value": 0.5 + better + 0.001 * more["seed"]}
        test = {name: value, "specificity": {"value": None if more["seed"] == 1 else 0.5}}
        found.write_json("metrics.json", {"main": name, "test": test})
        cost = {"trainable_share": 1.0, "peak_memory_mb": 1.0, "seconds": 1.0}
        found.write_json("cost.json", cost)
        (path / "checkpoints").mkdir()
        found.finish()
        return found

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(experiment, "_code", lambda: "the same code")
    return made


def test_an_arm_gets_the_run_of_the_same_seed(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "x.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    target = run_experiment("x", folder, tmp_path, tmp_path / "out")
    assert len(runs) == 15
    for seed in range(3):
        first, second, ours, head, plain = (run for run in runs if run["seed"] == seed)
        assert first["overrides"] == plain["overrides"] == ["a=1"]
        assert second["overrides"] == ["a=1", f"backbone={first['path']}"]
        assert ours["overrides"] == ["a=1", f"backbone={second['path']}"]
        assert head["overrides"] == ["a=1", f"head.grow_from={first['path']}"]
    result = json.loads(target.read_text())
    assert [row["name"] for row in result["arms"]] == ["ours", "head", "plain"]
    assert result["verdict"] == "holds" and "| ours |" in evidence_page([result])
    # A metric that one seed could not tell has no mean.
    assert [set(row["metrics"]) for row in result["arms"]] == [{"auroc"}] * 3
    # Dozens of runs would fill a disk.
    assert not [run["path"] for run in runs if (run["path"] / "checkpoints").exists()]
    # Finished runs are read, not repeated.
    run_experiment("x", folder, tmp_path, tmp_path / "out")
    assert len(runs) == 15


def test_the_points_of_a_learning_curve_share_their_stages(
    runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    data = [
        {**EXPERIMENT["data"][0], "name": f"{shots} shots", "labelled": [f"split.shots={shots}"]}
        for shots in (5, 20)
    ]
    (folder / "x.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "data": data}))
    run_experiment("x", folder, tmp_path, tmp_path / "out")
    stages = [run for run in runs if run["recipe"] == "pre"]
    assert len(stages) == 2 * 3 and all(run["overrides"][0] == "a=1" for run in stages)
    arms = [run["overrides"] for run in runs if run["recipe"] == "fine" and run["seed"] == 0]
    assert [arm[1] for arm in arms] == ["split.shots=5"] * 3 + ["split.shots=20"] * 3
    assert arms[0][2] == arms[3][2] == f"backbone={stages[1]['path']}"


@pytest.mark.parametrize(
    ("margin", "verdict"), [(0.0, "does_not_hold"), (0.09, "does_not_hold"), (0.11, "holds")]
)
def test_a_claim_of_as_good_as_has_a_margin(
    runs: list[dict[str, Any]], tmp_path: Path, margin: float, verdict: str
) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    expect = [{"a": "plain", "b": "ours", "margin": margin}]
    (folder / "x.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "expect": expect}))
    result = json.loads(run_experiment("x", folder, tmp_path, tmp_path / "out").read_text())
    assert result["verdict"] == verdict
    assert (f"(margin {margin:g})" in result["because"]) == (margin > 0)


def test_a_seed_without_the_metric_is_named_and_its_runs_are_kept(
    runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "x.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "metric": "specificity"}))
    for _ in range(2):
        with pytest.raises(DataError, match="Seed 1 has no specificity"):
            run_experiment("x", folder, tmp_path, tmp_path / "out")
        assert len(runs) == 15


def test_a_rehearsal_tries_every_arm_and_keeps_nothing(
    runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "x.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    rehearse("x", folder, tmp_path)
    assert [run["recipe"] for run in runs] == ["pre", "pre", "fine", "fine", "fine"]
    assert all("quick=true" in run["overrides"] for run in runs)
    assert not any(run["path"].exists() for run in runs)
    assert [path.name for path in folder.iterdir()] == ["x.yaml"]


def test_the_arm_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(recipe: str, *_: Any, **more: Any) -> Run:
        raise DataError("No labels.", where="d.csv", next_step="Add some.")

    monkeypatch.setattr(launch, "run", run)
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "x.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    with pytest.raises(DataError, match=r"where: arm 'first' on 'd', d\.csv\nnext: Add some"):
        rehearse("x", folder, tmp_path)


def test_an_arm_cannot_go_on_from_what_comes_later() -> None:
    arms = [EXPERIMENT["arms"][1], EXPERIMENT["arms"][0]]
    with pytest.raises(ConfigError, match="no arm before it"):
        parse(Experiment, {**EXPERIMENT, "arms": arms})


@pytest.mark.parametrize(("verdict", "named"), [("undecided", "wide"), ("does_not_hold", "worse")])
def test_a_line_of_the_summary_says_what_its_verdict_hangs_on(verdict: str, named: str) -> None:
    ends = {"worse": (-0.2, -0.1), "wide": (-0.5, 0.4), "better": (0.1, 0.2)}
    comparisons = [
        {"a": "ours", "b": b, "low": low, "high": high, "difference": 0.0, "margin": 0.0}
        for b, (low, high) in ends.items()
    ]
    data = [{"name": "Cells, 32 x 32"}, {"name": "Cells; 64 x 64"}, {"name": "Films (BCCD)"}]
    result = {"slug": "x", "metric": "auroc", "verdict": verdict, "comparisons": comparisons}
    line = summary_table([{**result, "data": data}], "docs/evidence.md")[-1]
    assert f"| ours - {named}: " in line and "[x](docs/evidence.md#x)" in line
    assert "| Cells and 1 more |" in line
