"""Masks from a decoder: whole runs on phantoms, and on the real sets of nuclei, vessels, volumes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from galenic import launch
from galenic.app.report import write
from galenic.core.errors import ConfigError, DataError
from galenic.core.fingerprint import fingerprint_module
from galenic.core.run import Run
from galenic.data.check import check
from galenic.data.cohort import Cohort
from galenic.evaluation.masks import compare
from galenic.pipeline.mask_files import read_back
from galenic.tasks import segment

TINY = [
    "backbone=builtin:resnet10?width=8", "input.size=64", "decoder.levels=4", "decoder.width=128",
    "score.resamples=20", "schedule.batch_size=8",
]  # fmt: skip


def phantoms(folder: Path, count: int = 30, size: tuple[int, int] = (40, 32)) -> Path:
    """A bright disc (1) and a dark square (2) on noise; the first mask is empty."""
    rng = np.random.default_rng(0)
    rows, grid = [], np.indices(size)
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = rng.normal(100, 10, size)
        mask = np.zeros(size, np.uint8)
        if number:
            centre = rng.integers(8, min(size) - 8, 2)
            mask[np.hypot(*(grid - centre[:, None, None])) < 6] = 1
            mask[2:8, 2:8] = 2
        pixels[mask == 1] += 90
        pixels[mask == 2] -= 70
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"{number}-mask.png")
        rows.append(
            {"image": f"{number}.png", "mask": f"{number}-mask.png", "patient_id": number // 2}
        )
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def start(recipe: str, data: Path, out: Path, *overrides: str, **columns) -> Run:
    return launch.run(
        recipe, data, out=out, overrides=[*TINY, *overrides],
        columns={"inputs": ["image"], **columns}, cache=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms(tmp_path_factory.mktemp("discs"))


def test_full_training_finds_the_structures(discs: Path, tmp_path: Path) -> None:
    run = start(
        "segment-full", discs, tmp_path, "schedule.epochs=20", "schedule.lr=1e-2",
        "structures=[disc,square]", "input.augment={shift: 0.1, turns: true}",
    )  # fmt: skip
    assert run.metrics["dice"].value > 0.8
    table = pd.read_parquet(run.path / "cases.parquet")
    test = table[table["split"] == "test"]
    found = run.read_json("structures.json")
    assert [row["name"] for row in found["structures"]] == ["disc", "square"]
    assert found["empty"] == 1
    # The files give the same figures again.
    job, _ = segment.load(run)
    for row, *figures in test[["row", "dice_0", "iou_1"]].itertuples(index=False):
        again = compare(read_back(run, row, 2), job.masks.codes(row), 2, (1.0, 1.0))
        np.testing.assert_allclose([again[0, 0], again[1, 1]], figures)
    page = write(run.path).read_text()
    assert "disc" in page and page.count("data:image/png") >= len(run.read_json("overlays.json"))


def test_frozen_network_stays_and_its_maps_may_be_computed_ahead(discs, tmp_path, monkeypatch):
    options = ("schedule.epochs=2",)
    run = start("segment-unet", discs, tmp_path / "a", *options)
    job, _ = segment.load(run)
    assert fingerprint_module(job.backbone.network) == job.backbone.fingerprint
    assert not (run.path / "adapter").exists()
    monkeypatch.setattr(segment, "MOST_AHEAD", 0)
    live = start("segment-unet", discs, tmp_path / "b", *options)
    first, second = (pd.read_parquet(one.path / "cases.parquet") for one in (run, live))
    pd.testing.assert_frame_equal(first, second, atol=1e-4)


@pytest.mark.parametrize("recipe", ["segment-unet", "segment-full"])
def test_masks_of_other_pictures(recipe: str, discs: Path, tmp_path: Path) -> None:
    run = start(recipe, discs, tmp_path, "schedule.epochs=2")
    rows = run.read_json("splits.json")["test"]
    own = shutil.copytree(discs.parent, tmp_path / "elsewhere")
    pd.read_csv(discs).iloc[rows].to_csv(own / "new.csv", index=False)
    made = launch.predict(run.path, own / "new.csv", out=tmp_path)
    for place, row in enumerate(rows):
        before, after = (one / "masks" for one in (run.path, made.path))
        assert (after / f"{place}.png").read_bytes() == (before / f"{row}.png").read_bytes()
    for name, figure in run.metrics.items():
        assert made.metrics[name].value == pytest.approx(figure.value)
    listed = pd.read_csv(made.path / "predictions.csv")
    pixels = [np.asarray(Image.open(made.path / name)) for name in listed["mask"]]
    assert listed.filter(like="pixels").sum(axis=1).tolist() == [(p > 0).sum() for p in pixels]
    # Without masks there are masks, and no figures.
    pd.read_csv(own / "new.csv").drop(columns="mask").to_csv(own / "bare.csv", index=False)
    bare = launch.predict(run.path, own / "bare.csv", out=tmp_path)
    assert not (bare.path / "metrics.json").exists()
    assert (bare.path / "masks/0.png").read_bytes() == (made.path / "masks/0.png").read_bytes()


def test_shuffled_masks_teach_nothing(discs: Path, tmp_path: Path) -> None:
    run = start(
        "segment-full", discs, tmp_path, "schedule.epochs=6", "schedule.lr=5e-3",
        "shuffle_labels=true",
    )  # fmt: skip
    disc = run.read_json("structures.json")["structures"][0]["test"]["dice"]["value"]
    # A blob in the middle covers part of most discs.
    assert disc < 0.6
    job, _ = segment.load(run)
    assert sorted(job.taught.source) == list(range(30))
    assert (job.taught.source[job.splits.test] == job.splits.test).all()


def test_compare_pairs_by_patient(discs: Path, tmp_path: Path) -> None:
    found = launch.compare(
        ["segment", "segment-unet"], discs, out=tmp_path,
        overrides=[*TINY, "schedule.epochs=1"], columns={"inputs": ["image"]},
    )  # fmt: skip
    (gap,) = found.board["differences"]
    values = {row["recipe"]: row["metrics"]["dice"]["value"] for row in found.rows}
    assert gap["value"] == pytest.approx(values[gap["a"]] - values[gap["b"]])
    assert gap["low"] <= gap["value"] <= gap["high"]


def test_masks_that_do_not_fit_are_named(discs: Path, tmp_path: Path) -> None:
    table = pd.read_csv(discs)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(discs.parent / "small.png")
    Image.fromarray(np.full((40, 32), 9, np.uint8)).save(discs.parent / "nine.png")
    rgb = np.dstack([np.zeros((40, 32), np.uint8)] * 2 + [np.ones((40, 32), np.uint8)])
    Image.fromarray(rgb).save(discs.parent / "colours.png")

    def broken(row: int, mask: str | None, name: str) -> Path:
        other = table.copy()
        other.loc[row, "mask"] = mask
        other.to_csv(discs.parent / name, index=False)
        return discs.parent / name

    sized = broken(3, "small.png", "sized.csv")
    with pytest.raises(DataError, match=r"1 mask\(s\) have another size.*") as caught:
        start("segment", sized, tmp_path)
    assert "rows 3" in caught.value.message
    findings = {f.code: f for f in check(Cohort.open(sized, inputs=["image"])).findings}
    assert findings["mask-size"].rows == (3,) and findings["mask-size"].level == "error"
    assert findings["mask-empty"].rows == (0, 3) and findings["mask-empty"].level == "warning"
    with pytest.raises(DataError, match="has colours"):
        start("segment", broken(3, "colours.png", "coloured.csv"), tmp_path)
    missing = broken(3, None, "missing.csv")
    run = start("segment", missing, tmp_path, "schedule.epochs=1")
    assert run.read_json("structures.json")["missing"] == 1
    splits = run.read_json("splits.json")
    assert all(3 not in splits[part] for part in ("train", "val", "test"))
    codes = {f.code for f in check(Cohort.open(missing, inputs=["image"])).findings}
    assert "mask-missing" in codes
    test_row = run.read_json("splits.json")["test"][0]
    with pytest.raises(DataError, match=r"Never seen in training: '9'"):
        start("segment", broken(test_row, "nine.png", "nine.csv"), tmp_path)
    with pytest.raises(DataError, match="There is no file"):
        start("segment", broken(3, "nowhere.png", "nowhere.csv"), tmp_path)
    with pytest.raises(ConfigError, match="1 structures are named"):
        start("segment", discs, tmp_path, "structures=[disc]")
    with pytest.raises(ConfigError, match="randaugment"):
        start("segment", discs, tmp_path, "input.augment={randaugment: {}}")
    with pytest.raises(ConfigError, match="a mask label has none"):
        start("segment", discs, tmp_path, "schedule.balance=true")
    with pytest.raises(DataError, match="names masks") as caught:
        launch.run("linear", discs, out=tmp_path, columns={"inputs": ["image"]})
    assert "galenic run segment" in caught.value.message


def test_volumes_slice_by_slice(real_data: Path, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    table = pd.read_csv(real_data / "msd_hippocampus/cases.csv").head(12)
    root = real_data / "msd_hippocampus"
    for column in ("image", "label"):
        table[column] = [str(root / name) for name in table[column]]
    table = table[["case_id", "image", "label"]].rename(columns={"case_id": "patient_id"})
    table.to_csv(tmp_path / "cases.csv", index=False)
    run = start(
        "segment-unet", tmp_path / "cases.csv", tmp_path, "schedule.epochs=1",
        "structures=[anterior,posterior]",
    )  # fmt: skip
    job, _ = segment.load(run)
    row = int(job.splits.test[0])
    value = job.cohort.read(row)["image"]
    assert len(job.frames.of([row])) == value.voxels.shape[1]
    saved = nibabel.load(run.path / f"masks/{row}.nii.gz")
    original = nibabel.load(job.cohort.table.at[row, "image"])
    assert sorted(saved.shape) == sorted(original.shape)
    np.testing.assert_allclose(saved.affine, value.affine)
    labels = job.masks.codes(row)
    assert read_back(run, row, 3).shape == labels.shape
    # A slice's example has the slice's own mask.
    rows = job.rows("test")
    middle = len(labels) // 2
    taught = rows[middle]["labels"]
    assert (np.bincount(taught.ravel(), minlength=3) > 0).tolist() == (
        np.bincount(labels[middle].ravel(), minlength=3) > 0
    ).tolist()


@pytest.mark.parametrize(
    ("manifest", "columns", "overrides"),
    [
        ("dsb2018_nuclei_96/manifest.csv", {"label": "mask"}, ["threshold=128"]),
        (
            "chase_db1/manifest.csv",
            {"label": "mask_observer1", "patient_id": "subject_id"},
            ["input.augment={flip: true}"],
        ),
    ],
)
def test_real_pictures(real_data: Path, tmp_path: Path, manifest, columns, overrides) -> None:
    run = launch.run(
        "segment", real_data / manifest, out=tmp_path, overrides=[*TINY, *overrides],
        columns={"inputs": ["image"], **columns}, quick=True, cache=False,
    )  # fmt: skip
    assert set(run.metrics) == {"dice", "iou", "hd95", "assd"}
    assert len(list((run.path / "masks").glob("*.png"))) == len(
        run.read_json("splits.json")["test"]
    )


def test_columns_that_hold_such_a_label_are_named(real_data: Path, tmp_path: Path) -> None:
    for recipe, manifest, expected in (
        ("segment", "chase_db1/manifest.csv", "next: --label mask_observer1, or mask_observer2"),
        ("segment", "medquad_subset/medquad.csv.gz", "next: --label COLUMN"),
        ("brain-tumor-ptp", "covid_cxr_ccby/manifest.csv", "or left_lung_box_xywh"),
    ):
        with pytest.raises(DataError) as caught:
            launch.run(recipe, real_data / manifest, out=tmp_path, quick=True)
        assert caught.value.message.endswith(expected)


def test_greys_need_a_threshold(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape("different values")) as caught:
        start("segment", real_data / "dsb2018_nuclei_96/manifest.csv", tmp_path, label="mask")
    assert "threshold=128" in caught.value.message


def test_three_dimensional_networks(tmp_path: Path, real_data: Path) -> None:
    pytest.importorskip("monai")
    table = pd.read_csv(real_data / "msd_hippocampus/cases.csv").head(8)
    root = real_data / "msd_hippocampus"
    for column in ("image", "label"):
        table[column] = [str(root / name) for name in table[column]]
    table[["case_id", "image", "label"]].to_csv(tmp_path / "cases.csv", index=False)
    spec = "monai:UNet?spatial_dims=3&in_channels=1&out_channels=4&channels=[4,8]&strides=[2]"
    torch.manual_seed(0)
    run = start(
        "segment", tmp_path / "cases.csv", tmp_path, f"backbone={spec}", "tuner.method=full",
        "schedule.max_steps=2", "input.size=[16,16,16]",
        "input.augment={flip: true, gamma: 0.2, warp: {rotate: 20, zoom: 0.1}}",
    )  # fmt: skip
    assert list((run.path / "masks").glob("*.nii.gz"))
