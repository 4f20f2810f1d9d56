"""Pre-training with captions beside the pictures, from a manifest to a run folder."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from galenic import launch
from galenic.app import report
from galenic.core import trainer
from galenic.core.errors import ConfigError, DataError
from galenic.core.run import Run
from galenic.models.backbone import open_backbone
from galenic.tasks import pretrain

SETTINGS = [
    "backbone=builtin:vit?width=32&depth=2&heads=2&image=32&patch=8",
    "pretraining.decoder={dim: 24, depth: 1, heads: 2}",
    "pretraining.text={layers: 1, width: 32, heads: 2}",
    "schedule.epochs=2",
    "schedule.batch_size=8",
    "resamples=50",
]
NAMES = ("benign", "malignant", "normal")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(36):
        pixels = (60 + 60 * (number % 3) + rng.normal(0, 8, (70, 70))).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        row = {"patient_id": number, "image": f"{number}.png", "label": NAMES[number % 3]}
        rows.append(row | {"kind": "breast ultrasound"})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def go(manifest: Path, out: Path, *overrides: str, **options: Any) -> Run:
    said = "captions={knowledge: 'builtin:radiology', modality: kind}"
    given = [*SETTINGS, said, *overrides]
    return launch.run("urfound", manifest, out=out, overrides=given, **options)


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return go(manifest, tmp_path_factory.mktemp("runs"), seed=3)


def test_both_parts_of_the_loss_are_figures(trained: Run) -> None:
    table = pd.read_parquet(trained.path / "losses.parquet")
    np.testing.assert_allclose(table["loss"], table["image_loss"] + table["text_loss"], rtol=1e-6)
    held = table[table["split"] == "test"]
    for name in ("loss", "image_loss", "text_loss"):
        assert trained.metrics[name].value == pytest.approx(held[name].mean(), rel=1e-6)
    assert (held["text_loss"] > 0).any()


def test_the_encoder_alone_is_a_backbone_at_its_own_size(trained: Run) -> None:
    opened = open_backbone(str(trained.path))
    assert opened.inputs.size == (32, 32)
    saved = load_file(trained.path / "adapter" / "tensors.safetensors")
    assert set(saved) == set(opened.network.state_dict())
    with Image.open(trained.path / "pictures.png") as sheet:
        assert sheet.height % (64 + 4) == 0 and sheet.width == 3 * (64 + 4)


def test_the_report_says_that_captions_came_from_the_label(trained: Run) -> None:
    page, card = report.write(trained.path), trained.path / "README.md"
    for text in (html.unescape(page.read_text()), card.read_text()):
        assert "captions from 'label'" in text and "no label was used" not in text


def test_a_run_that_was_cut_off_ends_on_the_same_bits(
    trained: Run, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.fit

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        def stop(step: int, _: int) -> None:
            if step == 5:
                raise KeyboardInterrupt

        return real(*args, **{**kwargs, "after_step": stop})

    monkeypatch.setattr(pretrain, "fit", cut_off)
    path = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        go(manifest, tmp_path, "schedule.checkpoint_steps=2", seed=3, path=path)
    monkeypatch.setattr(pretrain, "fit", real)
    done = launch.run("urfound", resume=path)
    first, second = (load_file(r.path / "adapter/tensors.safetensors") for r in (trained, done))
    assert all(torch.equal(first[key], second[key]) for key in first)
    losses = [pd.read_parquet(run.path / "losses.parquet") for run in (trained, done)]
    pd.testing.assert_frame_equal(*losses, check_exact=True)


def test_pictures_alone_need_no_caption(manifest: Path, tmp_path: Path) -> None:
    alone = ("pretraining.text=null", "schedule.max_steps=1")
    run = go(manifest, tmp_path, *alone, "captions=null")
    assert set(run.metrics) == {"loss"}
    assert "no label was used" in report.write(run.path).read_text()
    with pytest.raises(ConfigError, match="reads no captions"):
        go(manifest, tmp_path, *alone)


def test_captions_that_are_missing_or_unknown_are_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none are named"):
        go(manifest, tmp_path, "captions=null")
    with pytest.raises(DataError, match="No modality 'ct'"):
        go(manifest, tmp_path, "captions.modality=ct")
    with pytest.raises(ConfigError, match="reads no captions"):
        launch.run("mae-thorax", manifest, out=tmp_path, overrides=["captions={}"])
