"""The task `detect`: what it writes, what it refuses, and that it can be taken up again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from galenic import launch
from galenic.app import report
from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.models.detection.fcos import Fcos
from galenic.tasks import detect
from galenic.tasks._detect_config import Config

SIDE = 48
SMALL = (
    "input.size=64", "detector.strides=[8,16]", "detector.width=16", "schedule.batch_size=8",
    "schedule.max_steps=3", "score.resamples=50", "rule.min_slices=1", "split.test=0.4",
    "split.val=0.3",
)  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty patients of four slices; half have a bright square in two of them."""
    folder = tmp_path_factory.mktemp("squares")
    draw = np.random.default_rng(0)
    rows = []
    for number in range(80):
        patient, place = divmod(number, 4)
        picture = draw.normal(60, 10, (SIDE, SIDE))
        boxes = []
        if patient % 2 and place < 2:
            x, y = draw.integers(4, 26, 2).tolist()
            picture[y : y + 16, x : x + 16] += 120
            boxes = [[x, y, x + 16, y + 16, "square"]]
        name = f"{number:02d}.png"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name)
        rows.append((name, f"SECRET-{patient}", place, json.dumps(boxes)))
    path = folder / "cohort.csv"
    columns = ["image", "patient_id", "place", "boxes"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module", autouse=True)
def small_network(manifest: Path) -> None:
    """A residual network of four thin stages, beside the manifest."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1] * 4, layer_type="basic"
    )
    ResNetModel(config).save_pretrained(manifest.parent / "network")


def run(manifest: Path, out: Path, *overrides: str) -> Run:
    network = f"backbone={manifest.parent / 'network'}"
    asked = [*SMALL, "prevalence={}", network, *overrides]
    columns = {"inputs": ["image"]}
    return launch.run("brain-tumor-ptp", manifest, overrides=asked, columns=columns, out=out)


@pytest.fixture(scope="module")
def done(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(
        manifest, tmp_path_factory.mktemp("runs"), "prevalence.test=2", "rule.order=place",
        "rule.min_iou=0.3", "schedule.max_steps=12",
    )  # fmt: skip


def test_every_file_is_there_and_nobody_is_named(done: Run) -> None:
    assert [name for name in detect.FILES if not (done.path / name).is_file()] == []
    leaks = [p.name for p in done.path.rglob("*") if p.is_file() and b"SECRET" in p.read_bytes()]
    assert leaks == []


def test_the_test_part_has_the_prevalence_that_was_asked_for(done: Run) -> None:
    splits = done.read_json("splits.json")
    used, native = splits["prevalence"]["used"]["test"], splits["prevalence"]["native"]["test"]
    assert used["patients_without"] == 2 * used["patients_with"]
    assert used["patients_without"] <= native["patients_without"]
    patients = pd.read_parquet(done.path / "patients.parquet")
    test = patients[patients["split"] == "test"]
    assert test["label"].sum() == used["patients_with"]


def test_the_figures_are_those_of_the_tables(done: Run) -> None:
    document = done.read_json("detection.json")
    patients = pd.read_parquet(done.path / "patients.parquet")
    test = patients[patients["split"] == "test"]
    called = test["score"].fillna(-1) >= document["threshold"]
    assert called.astype(int).tolist() == test["called"].tolist()
    counts = document["patients"]["counts"]
    assert counts["tp"] == (called & (test["label"] == 1)).sum()
    assert counts["fp"] == (called & (test["label"] == 0)).sum()
    slices = pd.read_parquet(done.path / "slices.parquet")
    found = pd.DataFrame(done.read_json("detections.json"))
    surest = found.groupby("image_id")["score"].max()
    mine = slices[slices["split"] == "test"].set_index("row")["score"]
    np.testing.assert_allclose(mine[surest.index], surest)
    assert (mine[~mine.index.isin(surest.index)] == 0).all()


def test_the_report_shows_boxes_and_patients(done: Run) -> None:
    page = report.write(done.path).read_text()
    assert "Patient by patient" in page and "Who is in it" in page and "FROC" in page
    assert page.count("data:image/png") == len(done.read_json("detection.json")["shown"]) > 0


@pytest.mark.parametrize("tuner", ["full", "ssf", "bitfit"])
def test_a_finished_detector_is_read_again(
    tuner: str, done: Run, manifest: Path, tmp_path: Path
) -> None:
    made = done if tuner == "full" else run(manifest, tmp_path, f"tuner.method={tuner}")
    job, detector = detect.load(made)
    rows = job.splits.test[:4]
    pixels = np.stack([job.rows("test")[n]["pixel_values"] for n in range(4)])
    with torch.inference_mode():
        found = job._found(detector.detect(torch.from_numpy(pixels)).numpy(), rows)
    written = pd.DataFrame(made.read_json("detections.json"))
    theirs = written[written["image_id"].isin(rows)]["score"].to_numpy()
    assert len(theirs) > 0
    np.testing.assert_allclose(np.sort(found.score), np.sort(theirs), atol=1e-5)


def elsewhere(done: Run, manifest: Path, name: str, *without: str) -> Path:
    """The images of the test part as a manifest of their own."""
    table = pd.read_csv(manifest).iloc[done.read_json("splits.json")["test"]]
    table.drop(columns=list(without)).to_csv(manifest.parent / name, index=False)
    return manifest.parent / name


def test_other_images_are_judged_as_those_of_the_test_part(
    done: Run, manifest: Path, tmp_path: Path
) -> None:
    new = elsewhere(done, manifest, "new.csv")
    made = launch.predict(done.path, new, out=tmp_path)
    rows = np.array(done.read_json("splits.json")["test"])
    first, second = (pd.DataFrame(one.read_json("detections.json")) for one in (done, made))
    assert rows[second["image_id"]].tolist() == first["image_id"].tolist()
    np.testing.assert_allclose(second["score"], first["score"], atol=1e-5)
    assert done.metrics.keys() == made.metrics.keys()
    for name, before in done.metrics.items():
        assert made.metrics[name].value == pytest.approx(before.value, abs=1e-5, nan_ok=True), name
    page = report.write(made.path).read_text()
    assert f"Predicted by <code>{done.path.name}</code>" in page and "Who is in it" not in page


def test_what_is_predicted_does_not_depend_on_what_is_true(
    done: Run, manifest: Path, tmp_path: Path
) -> None:
    known = launch.predict(done.path, elsewhere(done, manifest, "known.csv"), out=tmp_path)
    new = elsewhere(done, manifest, "unknown.csv", "boxes")
    made = launch.predict(done.path, new, out=tmp_path)
    assert not (made.path / "metrics.json").exists()
    assert report.write(made.path).is_file()
    table = pd.read_csv(made.path / "predictions.csv")
    pd.testing.assert_frame_equal(table, pd.read_csv(known.path / "predictions.csv"))
    threshold = done.read_json("detection.json")["threshold"]
    assert ((table["score"] >= threshold) == (table["boxes"] > 0)).all()
    assert (table["patient_called"] == (table["patient_score"] >= threshold)).all()
    shared = pd.read_csv(new)["patient_id"]
    assert table.groupby(shared)["patient_called"].nunique().eq(1).all()
    with pytest.raises(DataError, match="no column 'place'"):
        launch.predict(done.path, elsewhere(done, manifest, "flat.csv", "place"), out=tmp_path)


def test_a_frozen_network_stays_as_it_was(manifest: Path, tmp_path: Path) -> None:
    made = run(manifest, tmp_path, "tuner.method=none")
    assert not (made.path / "adapter").exists()
    job, detector = detect.load(made)
    assert isinstance(detector, Fcos) and not job.adapted
    assert made.provenance["weights"]["fingerprint"] == detector.backbone.fingerprint


def test_shuffled_boxes_are_those_of_other_images(manifest: Path, tmp_path: Path) -> None:
    made = run(manifest, tmp_path, "shuffle_labels=true", "tuner.method=none")
    job, _ = detect.load(made)
    known = np.concatenate([job.splits.train, job.splits.val])
    before, after = (sum(len(some[row]) for row in known) for some in (job.boxes, job.taught))
    assert before == after > 0
    assert [job.taught[row] is job.boxes[row] for row in job.splits.test] == [True] * len(
        job.splits.test
    )
    moved = [len(job.taught[row]) != len(job.boxes[row]) for row in known]
    assert any(moved)


def test_a_detector_of_transformers_takes_the_same_road(manifest: Path, tmp_path: Path) -> None:
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=[48, 48], num_detection_tokens=6,
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(tmp_path / "yolos")
    made = run(manifest, tmp_path, f"detector.kind={tmp_path / 'yolos'}")
    assert made.state == "finished"
    _, detector = detect.load(made)
    assert detector.network.config.num_labels == 1
    new = launch.predict(made.path, elsewhere(made, manifest, "tokens.csv"), out=tmp_path)
    first, second = (pd.DataFrame(one.read_json("detections.json")) for one in (made, new))
    np.testing.assert_allclose(second["score"], first["score"], atol=1e-5)
    with pytest.raises(ConfigError, match=r"tuner\.method=full"):
        run(manifest, tmp_path, f"detector.kind={tmp_path / 'yolos'}", "tuner.method=none")


@pytest.mark.parametrize("way", ["warp={rotate: 20}", "randaugment={}"])
def test_pixels_that_move_without_their_boxes_are_refused(
    manifest: Path, tmp_path: Path, way: str
) -> None:
    with pytest.raises(ConfigError, match="boxes do not follow"):
        run(manifest, tmp_path, f"input.augment.{way}")


@pytest.mark.parametrize("strides", [[0], [-8], [16, 8], [8, 8]])
def test_strides_ascend_from_one(strides: list[int]) -> None:
    with pytest.raises(ConfigError, match="each larger than the one before"):
        parse(Config, {"data": "x", "detector": {"strides": strides}})


def test_a_class_that_training_never_sees_is_named(manifest: Path, tmp_path: Path) -> None:
    table = pd.read_csv(manifest)
    parts = ["train"] * 50 + ["val"] * 14 + ["test"] * 16
    table["split"] = [parts[4 * (row // 4)] for row in range(80)]
    last = table.index[(table["split"] == "test") & (table["boxes"] != "[]")][0]
    table.loc[last, "boxes"] = '[[1, 1, 9, 9, "heart"]]'
    table["image"] = [str(manifest.parent / name) for name in table["image"]]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(DataError, match="Never seen in training: 'heart'"):
        run(tmp_path / "cohort.csv", tmp_path, f"backbone={manifest.parent / 'network'}")


def test_classify_refuses_boxes_by_name(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds boxes"):
        launch.run("linear", manifest, columns={"inputs": ["image"]}, out=tmp_path)


def test_the_drawn_sample_holds_what_it_says() -> None:
    cohort = Cohort.open("sample:brain_slices")
    ill = np.unique(cohort.patient_ids[cohort.targets() == 1])
    assert len(cohort) == 2400 and len(ill) == 60
    assert len(np.unique(cohort.patient_ids)) == 200
