"""Probes side by side: no cross-talk, a frozen network, test samples read behind the choice."""

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
from galenic.core.config import parse
from galenic.core.errors import BackboneError, ConfigError
from galenic.core.fingerprint import fingerprint_module
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.models.backbone import open_backbone
from galenic.pipeline.levels import LevelEncoder
from galenic.tasks import classify, probe

TINY = [
    "backbone=builtin:resnet10?width=4", "input.size=64", "schedule.epochs=3",
    "schedule.batch_size=16", "score.resamples=0", "probe.blocks=[1,3]", "probe.lrs=[1e-3,1e-2]",
]  # fmt: skip


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes that lie, stand, or are dots, three pictures a patient."""
    folder = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    rows, wave = [], np.sin(np.arange(48) / 2)
    for number in range(72):
        kind = number // 3 % 3
        pattern = (wave[:, None], wave[None], wave[:, None] * wave[None])[kind]
        pixels = 128 + 60 * np.broadcast_to(pattern, (48, 48)) + rng.normal(0, 15, (48, 48))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": f"kind {kind}", "patient_id": number // 3})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def start(data: Path, out: Path, *overrides: str) -> Run:
    return launch.run("dinov2-radiology", data, out=out, overrides=[*TINY, *overrides], cache=False)


def test_a_probe_among_others_learns_as_it_does_alone(stripes: Path, tmp_path: Path) -> None:
    joint = start(stripes, tmp_path / "joint", "probe.refit=false")
    chosen = joint.read_json("probe.json")["chosen"]
    alone = start(
        stripes, tmp_path / "alone", "probe.refit=false", f"probe.blocks=[{chosen['blocks']}]",
        f"probe.average=[{str(chosen['average']).lower()}]", f"probe.lrs=[{chosen['lr']}]",
    )  # fmt: skip
    first, second = (load_file(run.path / "head.safetensors") for run in (joint, alone))
    assert first["head.linear.weight"].abs().sum() > 0
    torch.testing.assert_close(first["head.linear.weight"], second["head.linear.weight"])
    torch.testing.assert_close(first["head.linear.bias"], second["head.linear.bias"])


def test_chosen_on_validation_and_test_read_once_behind_it(stripes, tmp_path, monkeypatch) -> None:
    told: list[str] = []
    pooled, fit = probe.ProbeJob.pooled, classify.Job.fit

    def watched(job: probe.ProbeJob, part: str) -> np.ndarray:
        told.append(part)
        return pooled(job, part)

    def fitted(job: classify.Job, *args, **kwargs) -> None:
        told.append(kwargs["folder"])
        fit(job, *args, **kwargs)

    monkeypatch.setattr(probe.ProbeJob, "pooled", watched)
    monkeypatch.setattr(classify.Job, "fit", fitted)
    run = start(stripes, tmp_path)
    assert told.count("test") == 1
    assert told.index("test") > told.index("refit") > told.index("joint")
    found = run.read_json("probe.json")
    assert len(found["tried"]) == 8
    best = max(row["balanced_accuracy"] for row in found["tried"])
    chosen = next(row for row in found["tried"] if row["balanced_accuracy"] == best)
    assert {key: chosen[key] for key in ("blocks", "average", "lr")} == found["chosen"]
    # What is told of validation is of the probe that had not seen it.
    assert run.read_json("metrics.json")["validation"]["balanced_accuracy"]["value"] == best


def test_a_finished_run_gives_its_predictions_again(stripes: Path, tmp_path: Path) -> None:
    run = start(stripes, tmp_path)
    job, objective = probe.load(run)
    assert fingerprint_module(job.backbone.network) == job.backbone.fingerprint
    assert not (run.path / "adapter").exists()
    logits = predict(objective, job.rows("test"), collate=job.collate)["logits"]
    table = pd.read_parquet(run.path / "predictions.parquet")
    scores = table[table["split"] == "test"].filter(regex="^score").to_numpy()
    shares = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    np.testing.assert_allclose(shares, scores, rtol=1e-5)


def test_the_chosen_probe_predicts_other_samples(stripes: Path, tmp_path: Path) -> None:
    run = start(stripes, tmp_path)
    made = launch.predict(run.path, stripes, out=tmp_path)
    before, after = (pd.read_parquet(one.path / "predictions.parquet") for one in (run, made))
    before = before[before["split"] == "test"].set_index("row").filter(regex="^score")
    after = after.set_index("row").loc[before.index].filter(regex="^score")
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_shuffled_labels_teach_nothing(stripes: Path, tmp_path: Path) -> None:
    assert start(stripes, tmp_path / "a", "schedule.epochs=30").metrics["auroc"].value > 0.8
    control = start(stripes, tmp_path / "b", "schedule.epochs=30", "shuffle_labels=true")
    assert control.metrics["auroc"].value < 0.8


def test_what_is_no_probe_is_refused(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="frozen"):
        start(stripes, tmp_path, "tuner.method=full")
    with pytest.raises(BackboneError, match="has 5 levels of features; 9"):
        start(stripes, tmp_path, "probe.blocks=[9]")


@pytest.mark.parametrize(
    ("key", "values"), [("blocks", [0]), ("blocks", [4, -1]), ("lrs", [0]), ("lrs", [0.01, -0.5])]
)
def test_no_block_and_no_rate_are_refused(key: str, values: list[Any]) -> None:
    with pytest.raises(ConfigError, match=f"probe.{key}"):
        parse(probe.Config, {"data": "x", "probe": {key: values}})


def test_levels_are_those_of_the_network_by_hand(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    network = Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7
        )
    )
    network.save_pretrained(tmp_path)
    backbone = open_backbone(str(tmp_path), pool="cls").eval()
    encoder = LevelEncoder(backbone, 3).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        found = encoder(pixel_values=pixels)
        outputs = backbone.network(pixels, output_hidden_states=True)
        normed = [backbone.network.layernorm(state) for state in outputs.hidden_states[2:]]
    by_hand = [state[:, 0] for state in normed] + [normed[-1][:, 1:].mean(dim=1)]
    torch.testing.assert_close(found, torch.cat(by_hand, dim=1))
    assert encoder.columns(2, False) == list(range(16, 48))
    assert encoder.columns(1, True) == list(range(32, 64))
    # The slices of a volume: the mean of what each gives.
    with torch.no_grad():
        slices = encoder(pixel_values=torch.stack([pixels, pixels.flip(0)]))
    torch.testing.assert_close(slices, found.mean(dim=0).expand(2, -1))
