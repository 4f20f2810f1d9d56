"""A normalisation of its own for each source of a mixed cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from galenic import launch
from galenic.core.errors import ConfigError, DataError
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.models.backbone import open_backbone
from galenic.pipeline.inputs import Inputs
from galenic.pipeline.sources import normalisation

VIT = "builtin:vit?width=24&depth=2&heads=2&image=16&patch=8"
SETTINGS = [
    f"backbone={VIT}", "pretraining.mask_ratio=0.5", "pretraining.decoder={dim: 24, depth: 1, heads: 2}",
    "schedule.epochs=1", "schedule.batch_size=8", "resamples=20", "input.augment=null",
]  # fmt: skip
# Mean and spread of the grey values of each hospital; the third is a copy of the second.
GREYS = {"north": (60, 10), "south": (180, 30), "west": (180, 30)}


@pytest.fixture()
def manifest(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        site = list(GREYS)[number % 3]
        pixels = rng.normal(*GREYS[site], (16, 16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        part = "train" if number < 36 else "val" if number < 48 else "test"
        rows.append(
            {"patient_id": number, "image": f"{number}.png", "hospital": site, "split": part}
        )
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


def go(manifest: Path, *overrides: str, **columns: Any) -> Run:
    asked = ["split.how=given", *SETTINGS, *overrides]
    return launch.run(
        "mae-thorax", manifest, out=manifest.parent / "runs", overrides=asked,
        columns={"inputs": ["image"], **columns},
    )  # fmt: skip


def pixels_of(manifest: Path, rows: Any) -> np.ndarray:
    return np.stack([np.asarray(Image.open(manifest.parent / f"{row}.png")) for row in rows]) / 255


def test_each_source_has_the_statistics_of_its_own_training_pictures(manifest: Path) -> None:
    run = go(manifest, "normalise_by=site")
    document = run.read_json("normalisation.json")
    assert document["column"] == "hospital" and list(document["sources"]) == list(GREYS)
    for place, (name, found) in enumerate(document["sources"].items()):
        rows = range(place, 36, 3)
        pixels = pixels_of(manifest, rows)
        assert found["samples"] == len(rows) == 12, name
        np.testing.assert_allclose(found["mean"], [pixels.mean()] * 3, rtol=1e-5)
        np.testing.assert_allclose(found["std"], [pixels.std()] * 3, rtol=1e-4)
    # The report shows grey values, not those of the network: its first column is the input.
    with Image.open(run.path / "pictures.png") as sheet:
        shown = np.asarray(sheet)[:16, :16, 0]
    test = int(run.read_json("splits.json")["test"][0])
    np.testing.assert_allclose(shown / 255, pixels_of(manifest, [test])[0], atol=1.5 / 255)


def test_the_network_sees_every_source_with_mean_zero_and_spread_one(manifest: Path) -> None:
    cohort, backbone = Cohort.open(manifest, inputs=["image"]), open_backbone(VIT)
    train, held = np.arange(36), np.arange(36, 60)
    found = normalisation(cohort, train, held, backbone.inputs, "hospital")
    inputs = Inputs(cohort, backbone, normalisation=found)
    for place in range(3):
        seen = np.stack([inputs[row][backbone.inputs.key] for row in range(place, 36, 3)])
        assert seen.mean() == pytest.approx(0, abs=1e-4)
        assert seen.std() == pytest.approx(1, abs=1e-4)
    # What is kept of a frozen network knows how its input was normalised.
    plain = Inputs(cohort, backbone)
    assert not set(inputs.keys([0, 1])) & set(plain.keys([0, 1]))


def test_held_out_pictures_teach_no_statistics(manifest: Path) -> None:
    first = go(manifest, "normalise_by=hospital").read_json("normalisation.json")
    for row in range(36, 60):
        Image.fromarray(np.full((16, 16), row, np.uint8)).save(manifest.parent / f"{row}.png")
    assert go(manifest, "normalise_by=hospital").read_json("normalisation.json") == first
    Image.fromarray(np.full((16, 16), 5, np.uint8)).save(manifest.parent / "0.png")
    assert go(manifest, "normalise_by=hospital").read_json("normalisation.json") != first


def test_it_is_off_by_default(manifest: Path) -> None:
    run = go(manifest)
    assert run.config["normalise_by"] is None
    assert not (run.path / "normalisation.json").exists()
    both = [
        pd.read_parquet(r.path / "losses.parquet")["loss"].to_numpy()
        for r in (run, go(manifest, "normalise_by=hospital"))
    ]
    assert not np.allclose(*both)


@pytest.mark.parametrize(
    ("change", "column", "words"),
    [
        (lambda t: t, "hospitl", "no column 'hospitl'.*hospital"),
        (lambda t: t.assign(hospital=t["hospital"].where(t.index != 7)), "hospital", "row 7"),
        (
            lambda t: t.assign(hospital=t["hospital"].where(t.index != 59, "east")),
            "hospital",
            "No training row is of source 'east'",
        ),
    ],
)
def test_sources_that_cannot_be_measured_are_named(
    manifest: Path, change: Any, column: str, words: str
) -> None:
    change(pd.read_csv(manifest)).to_csv(manifest, index=False)
    with pytest.raises(DataError, match=words):
        go(manifest, f"normalise_by={column}")


def test_a_source_without_contrast_and_a_cohort_without_pixels_are_refused(
    manifest: Path, tmp_path: Path
) -> None:
    cohort = Cohort.open(manifest, inputs=["image"])
    spec = open_backbone(VIT).inputs
    rows = np.arange(0, 36, 3)
    for row in rows:
        Image.fromarray(np.full((16, 16), 9, np.uint8)).save(manifest.parent / f"{row}.png")
    with pytest.raises(DataError, match="'north' are alike"):
        normalisation(cohort, np.arange(36), np.arange(36, 60), spec, "hospital")
    table = pd.DataFrame({"patient_id": range(4), "age": range(4), "hospital": list("abab")})
    with pytest.raises(ConfigError, match="The input is table"):
        normalisation(
            Cohort.open(table, inputs=["age"]), np.arange(4), np.arange(0), spec, "hospital"
        )
