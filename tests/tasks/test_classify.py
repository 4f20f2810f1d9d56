"""Classify on real cohorts of several modalities, and its faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galenic import launch
from galenic.core.errors import BackboneError, ConfigError, DataError, GalenicError, RunError
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.tasks import classify
from galenic.tasks.classify import load

COHORTS = {
    "ultrasound": ("busi_256_subset/manifest.csv", {"inputs": ["image"], "label": "label"}),
    "ct": ("tcga_lung_ct_slices/manifest.csv", {"inputs": ["image"], "label": "contrast"}),
    "voice": ("als_voice/speakers.csv", {"inputs": ["file"], "label": "label"}),
}


@pytest.mark.parametrize("name", COHORTS)
def test_ssf_runs_on_real_cohorts(name: str, real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    path, columns = COHORTS[name]
    run = launch.run(
        "ssf", real_data / path, columns=columns, out=tmp_path, quick=True,
        overrides=["input.size=64"],
    )  # fmt: skip
    assert run.state == "finished"
    assert run.read_json("cost.json")["trainable_share"] < 0.05
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()


def test_what_was_saved_predicts_the_same(tmp_path: Path) -> None:
    run = launch.run("ssf", "sample:icd10", out=tmp_path, quick=True)
    job, objective = load(Run.open(run.path))
    logits = predict(objective, job.rows("test"), collate=job.collate)["logits"]
    table = pd.read_parquet(run.path / "predictions.parquet")
    scores = table[table["split"] == "test"].filter(like="score").to_numpy()
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(chance, scores, atol=1e-5)


def test_a_table_goes_all_the_way(tmp_path: Path) -> None:
    run = launch.run("linear", "sample:breast-fna", out=tmp_path)
    assert run.metrics["auroc"].low > 0.95
    points = run.read_json("operating.json")
    assert points[0]["wished"] == {"sensitivity": 0.9}


def test_shuffled_labels_teach_nothing(tmp_path: Path) -> None:
    run = launch.run(
        "linear", "sample:icd10", out=tmp_path, shuffle_labels=True, overrides=["score.resamples=0"]
    )
    assert run.metrics["balanced_accuracy"].value < 0.15


@pytest.mark.parametrize(
    ("recipe", "overrides", "kind", "words"),
    [
        ("ssf", ["tuner.methd=ssf"], ConfigError, "method"),
        ("ssf", ["schedule.lrr=1"], ConfigError, "lr"),
        ("ssf", ["schedule.lr=fast"], ConfigError, "fast"),
        ("ssff", [], ConfigError, "ssf"),
        ("linear", ["backbone=builtin:minilmm"], BackboneError, "minilm"),
        ("linear", ["backbone=no/such/folder"], BackboneError, "could not be opened"),
        ("linear", ["tuner.method=lorra"], ConfigError, "lora"),
        ("linear", ["score.metrics=[aurok]"], ConfigError, "auroc"),
        ("linear", ["score.subgroups=[lable]"], DataError, "no column 'lable'"),
        ("linear", ["score.sensitivity=[90]"], ConfigError, "score.sensitivity"),
        ("linear", ["input.size=0"], ConfigError, "every side is 1 or more"),
        ("linear", ["input.size=[32,-3]"], ConfigError, "every side is 1 or more"),
        ("linear", ["input.size=[]"], ConfigError, "every side is 1 or more"),
        ("linear", ["input.channels=0"], ConfigError, "input.channels"),
    ],
)
def test_a_wrong_word_names_the_right_one(
    recipe: str,
    overrides: list[str],
    kind: type[GalenicError],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classify.Job, "train", lambda _: pytest.fail("it was trained first"))
    with pytest.raises(kind) as error:
        launch.run(recipe, "sample:icd10", out=tmp_path, quick=True, overrides=overrides)
    assert words in error.value.message


def test_a_run_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "mine"
    taken.mkdir()
    (taken / "keep.txt").write_text("precious")
    with pytest.raises(RunError, match="exists"):
        launch.run("knn", "sample:icd10", out=tmp_path, path=taken, quick=True)
    assert (taken / "keep.txt").read_text() == "precious"


def test_comparison_ranks_and_names_what_failed(tmp_path: Path) -> None:
    made = launch.compare(["knn", "linear", "ssf"], "sample:breast-fna", out=tmp_path)
    names = [row["recipe"] for row in made.rows]
    assert set(names) == {"knn", "linear"}
    values = [row["metrics"]["auroc"]["value"] for row in made.rows]
    assert values == sorted(values, reverse=True)
    assert list(made.board["failed"]) == ["ssf"]
    assert made.board["differences"][0]["a"] == names[0]


TABLE = ["backbone=builtin:table", "score.resamples=0", "schedule.epochs=2"]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A manifest of 80 patients with two measurements."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"patient_id": range(80), "a": rng.normal(size=80), "b": rng.normal(size=80)}
    )
    path = tmp_path / "measured.csv"
    frame.assign(label=(frame["a"] > 0).astype(int)).to_csv(path, index=False)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_manifest_that_changed_under_a_run_is_noticed(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch.run("linear", measured, out=tmp_path / "a", overrides=TABLE)

    def cut(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("galenic.tasks.classify.Job.evaluate", cut)
        launch.run("linear", measured, out=tmp_path / "b", overrides=TABLE)
    left = next((tmp_path / "b").glob("linear*"))
    # In another order, other patients would be in test.
    pd.read_csv(measured).sort_values("a").to_csv(measured, index=False)
    before = files_of(run.path)
    with pytest.raises(DataError, match="manifest has changed"):
        load(run)
    assert files_of(run.path) == before
    parts = (left / "splits.json").read_bytes()
    with pytest.raises(DataError, match="manifest has changed"):
        launch.run("linear", resume=left)
    assert (left / "splits.json").read_bytes() == parts


def test_trees_stand_on_a_network_of_pictures(bright_squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    words = ["input.size=32", "score.resamples=0"]
    run = launch.run("trees", bright_squares, out=tmp_path, overrides=words)
    assert run.state == "finished" and (run.path / "head.safetensors").is_file()


def test_neighbours_stand_on_what_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Neighbours vote by frozen features"):
        launch.run("bitfit", "sample:icd10", out=tmp_path, quick=True, overrides=["head.kind=knn"])
