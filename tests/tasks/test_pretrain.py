"""Pre-training from a manifest to a run folder that other runs start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from galenic import launch
from galenic.app import report
from galenic.core import trainer
from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.optim import parameter_groups
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.splits import SplitConfig, make_splits
from galenic.models.backbone import open_backbone
from galenic.models.export import TIMM
from galenic.models.vit_keys import from_timm
from galenic.objectives import pretraining
from galenic.pipeline.inputs import Inputs
from galenic.pipeline.unlabelled import Unlabelled
from galenic.tasks import classify, pretrain

VIT = "builtin:vit?width=32&depth=2&heads=2&image=32&patch=8"
SETTINGS = [
    f"backbone={VIT}",
    "pretraining.mask_ratio=0.75",
    "pretraining.decoder={dim: 24, depth: 1, heads: 2}",
    "schedule.epochs=2",
    "schedule.batch_size=8",
    "resamples=50",
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(48):
        waves = np.sin(np.arange(40) / (2 + number // 2 % 2))[:, None] * np.ones(40)
        pixels = (128 + 60 * waves + rng.normal(0, 8, waves.shape)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        label = "ab"[number // 2 % 2] if number < 40 else ""
        rows.append({"patient_id": number // 2, "image": f"{number}.png", "label": label})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "cohort.csv", index=False)
    table.drop(columns="label").to_csv(folder / "unlabelled.csv", index=False)
    return folder / "cohort.csv"


def go(manifest: Path, out: Path, *overrides: str, **options: Any) -> Run:
    return launch.run("mae-thorax", manifest, out=out, overrides=[*SETTINGS, *overrides], **options)


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return go(manifest, tmp_path_factory.mktemp("runs"), seed=3)


def test_the_loss_of_held_out_samples_is_the_figure(trained: Run) -> None:
    document = trained.read_json("metrics.json")
    table = pd.read_parquet(trained.path / "losses.parquet")
    for part, name in (("test", "test"), ("val", "validation")):
        losses = table[table["split"] == part]["loss"]
        assert document[name]["loss"]["value"] == pytest.approx(losses.mean(), rel=1e-6)
    watched = [e["loss"] for e in trained.events() if e.get("event") == "validation"]
    # The last epoch stays, not the best; and every epoch hides the same of a held-out sample.
    assert watched[-1] == pytest.approx(document["validation"]["loss"]["value"], rel=1e-5)
    assert trained.metrics["loss"].n == 4


def test_a_run_is_the_backbone_of_another(trained: Run, manifest: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    opened = open_backbone(str(trained.path))
    saved = load_file(trained.path / "adapter" / "tensors.safetensors")
    state = opened.network.state_dict()
    assert set(saved) == set(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
    fine = launch.run(
        "mae-thorax-finetune", manifest, out=tmp_path, seed=3, backbone=str(trained.path),
        overrides=["schedule.epochs=1", "schedule.batch_size=8", "score.resamples=20"],
    )  # fmt: skip
    assert fine.provenance["weights"]["fingerprint"] == opened.fingerprint
    parts = [run.read_json("splits.json") for run in (trained, fine)]
    assert parts[0]["test"] == parts[1]["test"] and parts[0]["val"] == parts[1]["val"]


def test_the_encoder_opens_in_other_libraries(trained: Run) -> None:
    folder = trained.path / "encoder"
    saved = load_file(trained.path / "adapter" / "tensors.safetensors")
    theirs = AutoModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
    ours = from_timm(load_file(folder / TIMM))
    assert set(theirs) == set(saved) == set(ours)
    for name, tensor in saved.items():
        assert torch.equal(theirs[name], tensor) and torch.equal(ours[name], tensor)
    again = open_backbone(str(folder), pool="mean")
    assert again.inputs.mean == open_backbone(VIT).inputs.mean


def test_a_run_that_was_cut_off_ends_on_the_same_bits(
    trained: Run, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.fit

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        def stop(step: int, _: int) -> None:
            if step == 6:
                raise KeyboardInterrupt

        return real(*args, **{**kwargs, "after_step": stop})

    monkeypatch.setattr(pretrain, "fit", cut_off)
    path = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        go(manifest, tmp_path, "schedule.checkpoint_steps=2", seed=3, path=path)
    monkeypatch.setattr(pretrain, "fit", real)
    done = launch.run("mae-thorax", resume=path)
    name = "adapter/tensors.safetensors"
    first, second = (load_file(run.path / name) for run in (trained, done))
    assert all(torch.equal(first[key], second[key]) for key in first)
    losses = [pd.read_parquet(run.path / "losses.parquet") for run in (trained, done)]
    pd.testing.assert_frame_equal(*losses, check_exact=True)


def test_the_report_shows_the_pictures(trained: Run) -> None:
    page = report.write(trained.path).read_text()
    assert "no label was used" in page and 'class="sheet"' in page
    with Image.open(trained.path / "pictures.png") as sheet:
        assert sheet.size == (3 * (32 + 4), 6 * (32 + 4))
    assert "no label was used" in (trained.path / "README.md").read_text()


def test_tracings_are_learnt_and_not_drawn(tmp_path: Path) -> None:
    wfdb = pytest.importorskip("wfdb")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        wfdb.wrsamp(
            f"{number}", fs=100, units=["mV"], sig_name=["II"], fmt=["16"], write_dir=str(tmp_path),
            p_signal=np.sin(np.arange(300) / (4 + number % 3))[:, None] + rng.normal(0, 0.1, (300, 1)),
        )  # fmt: skip
        rows.append({"patient_id": number, "ecg": f"{number}.hea"})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    network = "builtin:net1d?stem=4&widths=[4,8]&blocks=[1,1]&group_width=4&kernel=4"
    run = launch.run(
        "spark-ct", tmp_path / "cohort.csv", out=tmp_path / "runs",
        overrides=[
            f"backbone={network}", "input.size=256", "input.augment=null", "resamples=20",
            "pretraining.decoder_width=32", "schedule.max_steps=1", "schedule.batch_size=4",
        ],
    )  # fmt: skip
    assert (run.path / "adapter" / "tensors.safetensors").is_file()
    assert not (run.path / "pictures.png").exists()
    assert "no label was used" in report.write(run.path).read_text()


def test_what_was_trained_is_saved_before_it_is_drawn(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spilt(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr(pretrain, "draw_pictures", spilt)
    path = tmp_path / "run"
    with pytest.raises(OSError):
        go(manifest, tmp_path, "schedule.max_steps=1", path=path)
    assert (path / "adapter" / "tensors.safetensors").is_file()


def test_no_label_is_needed(manifest: Path, tmp_path: Path) -> None:
    run = go(manifest.parent / "unlabelled.csv", tmp_path, "schedule.max_steps=1")
    counts = run.read_json("splits.json")["counts"]
    assert sum(counts.values()) == 48
    assert "no label was used" in report.write(run.path).read_text()
    with pytest.raises(DataError, match="label"):
        launch.run("linear", manifest.parent / "unlabelled.csv", out=tmp_path)


def test_samples_without_a_label_join_training(manifest: Path, trained: Run) -> None:
    labelled = make_splits(Cohort.open(manifest), SplitConfig(), 3)
    parts = trained.read_json("splits.json")
    assert parts["test"] == labelled.test.tolist() and parts["val"] == labelled.val.tolist()
    assert set(parts["train"]) == set(labelled.train) | set(range(40, 48))


def test_settings_of_a_training_with_labels_are_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layer_decay"):
        go(manifest, tmp_path, "schedule.layer_decay=0.5")
    with pytest.raises(ConfigError, match="mae"):
        go(manifest, tmp_path, "pretraining={method: may}")
    with pytest.raises(ConfigError, match="mask_ratio"):
        go(manifest, tmp_path, "pretraining.mask_ration=0.5")


def test_views_without_anything_varied_are_refused(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "views", lambda config: 2)
    with pytest.raises(ConfigError, match="views"):
        go(manifest, tmp_path, "input.augment=null")


# Batches --------------------------------------------------------------------------------


def test_views_are_drawn_apart_and_the_same_again(manifest: Path) -> None:
    cohort, backbone = Cohort.open(manifest), open_backbone(VIT)
    from galenic.data.augment import AugmentConfig

    augment = AugmentConfig(crop=(0.3, 1.0))

    def rows(seed: int = 0) -> Unlabelled:
        inputs = Inputs(cohort, backbone, augment=augment, seed=seed)
        return Unlabelled([4, 7], inputs, 2, seed)

    one = rows()
    first = one[1]
    assert first["pixel_values"].shape == (2, 3, 32, 32)
    assert not np.array_equal(*first["pixel_values"])
    assert all(np.array_equal(first[key], rows()[1][key]) for key in first)
    one.set_epoch(1)
    for key in first:
        assert not np.array_equal(first[key], one[1][key])
        assert not np.array_equal(first[key], rows(seed=1)[1][key])


# The fine-tuning recipe -----------------------------------------------------------------


def test_rates_fall_by_layer_as_in_the_paper(manifest: Path, tmp_path: Path) -> None:
    decay, rate = 0.55, 1e-3
    deep = "builtin:vit?width=16&depth=12&heads=2&image=32&patch=8"
    values = {
        "data": str(manifest), "backbone": deep, "tuner": {"method": "full"}, "pool": "mean",
        "head": {"standardise": False}, "schedule": {"layer_decay": decay, "lr": rate},
    }  # fmt: skip
    config = parse(classify.Config, values)
    run = Run.create(tmp_path, "x")
    run.start(config.model_dump(mode="json"))
    job = classify.Job(config, run)
    groups = parameter_groups(job.objective, config.schedule, job._depths())
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = {n: p for n, p in job.objective.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(named)

    def layer(name: str) -> int:
        if ".layers." in name:
            return int(name.split(".layers.")[1].split(".")[0]) + 1
        return 0 if ".embeddings." in name else 13

    for name, parameter in named.items():
        assert found[id(parameter)] == pytest.approx(rate * decay ** (13 - layer(name))), name
    assert {layer(name) for name in named} == set(range(14))
