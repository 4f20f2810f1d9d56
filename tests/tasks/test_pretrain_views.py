"""Pre-training by swapped assignments: small views, epochs and a resume."""

from __future__ import annotations

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
from galenic.core.errors import ConfigError
from galenic.core.run import Run
from galenic.data.augment import AugmentConfig
from galenic.data.cohort import Cohort
from galenic.models.backbone import open_backbone
from galenic.pipeline.inputs import Collate, Inputs
from galenic.pipeline.unlabelled import Unlabelled
from galenic.tasks import pretrain

CNN = "builtin:resnet10?width=4"
SETTINGS = [
    f"backbone={CNN}", "input.size=32", "pretraining.prototypes=4", "pretraining.dim=6",
    "pretraining.hidden=12", "pretraining.local={count: 3, share: 0.5}", "schedule.epochs=2",
    "pretraining.queue=8", "pretraining.queue_epochs=1", "schedule.batch_size=8",
    "schedule.lr=1e-2", "resamples=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        waves = np.sin(np.arange(40) / (2 + number // 2 % 2))[:, None] * np.ones(40)
        pixels = (128 + 60 * waves + rng.normal(0, 8, waves.shape)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"patient_id": number // 2, "image": f"{number}.png"})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def go(manifest: Path, out: Path, *overrides: str, **options: Any) -> Run:
    return launch.run("swav", manifest, out=out, overrides=[*SETTINGS, *overrides], **options)


def test_small_views_stand_beside_the_whole_ones(manifest: Path) -> None:
    cohort, backbone = Cohort.open(manifest), open_backbone(CNN, size=32)
    augment = AugmentConfig(crop=(0.05, 0.14), shift=0, intensity=0)
    whole = Inputs(cohort, backbone, augment=AugmentConfig(crop=(0.9, 1.0)), seed=0)
    rows = Unlabelled(
        range(4), whole, 2, 0, local=(Inputs(cohort, backbone, augment=augment, scale=0.5), 3)
    )
    batch = Collate.of(backbone)([rows[place] for place in range(4)])
    assert batch[backbone.inputs.key].shape == (4, 2, backbone.inputs.channels, 32, 32)
    assert batch["local"].shape == (4, 3, backbone.inputs.channels, 16, 16)
    first = rows[0]["local"]
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first, rows[0]["local"])
    rows.set_epoch(1)
    assert not np.array_equal(first, rows[0]["local"])


def test_prototypes_move_after_the_first_epoch_and_a_resume_ends_on_the_same_bits(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = trainer.fit, []

    def watched(stop_at: int | None) -> Any:
        def fit(objective: Any, *args: Any, after_step: Any, **kwargs: Any) -> Any:
            seen.append(objective.prototypes.weight.detach().clone())

            def after(step: int, steps: int) -> None:
                after_step(step, steps)
                seen.append(objective.prototypes.weight.detach().clone())
                if step == stop_at:
                    raise KeyboardInterrupt

            return real(objective, *args, after_step=after, **kwargs)

        return fit

    monkeypatch.setattr(pretrain, "fit", watched(None))
    whole = go(manifest, tmp_path, seed=3)
    half = len(seen) // 2
    for weight in seen:
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(4))
    for weight in seen[1 : half + 1]:
        torch.testing.assert_close(weight, seen[0], rtol=0, atol=1e-6)
    assert (seen[half + 1] - seen[0]).abs().max() > 1e-3
    for stop_at in (2, half + 1):
        monkeypatch.setattr(pretrain, "fit", watched(stop_at))
        path = tmp_path / f"cut-{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            go(manifest, tmp_path, "schedule.checkpoint_steps=1", seed=3, path=path)
        monkeypatch.setattr(pretrain, "fit", real)
        done = launch.run("swav", resume=path)
        name = "adapter/tensors.safetensors"
        one, other = (load_file(run.path / name) for run in (whole, done))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_views_need_something_varied(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compares 2 views"):
        go(manifest, tmp_path, "input.augment=null")


def test_a_loss_of_all_samples_has_no_interval_and_no_batch_size(
    manifest: Path, tmp_path: Path
) -> None:
    found = [
        launch.run(
            "barlow-twins", manifest, out=tmp_path, seed=1,
            overrides=[
                f"backbone={CNN}", "input.size=32", "pretraining.dim=8", "schedule.max_steps=2",
                "schedule.batch_size=8", f"schedule.eval_batch_size={size}", "resamples=20",
            ],
        )
        for size in (3, 64)
    ]  # fmt: skip
    one, other = (run.metrics["loss"] for run in found)
    assert one.value == pytest.approx(other.value, rel=1e-4)
    document = found[0].read_json("metrics.json")
    for part in ("test", "validation"):
        assert document[part]["loss"]["low"] is None and document[part]["loss"]["n"] > 1
    watched = [e["loss"] for e in found[0].events() if e.get("event") == "validation"]
    assert watched[-1] == pytest.approx(document["validation"]["loss"]["value"], rel=1e-4)
    table = pd.read_parquet(found[0].path / "losses.parquet")
    assert list(table) == ["row", "split"]
    assert report.write(found[0].path).is_file()
    assert (found[0].path / "README.md").is_file()
