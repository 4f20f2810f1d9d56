"""Heat, fine-tune, drop the policy: whole runs on tiny pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from galenic import launch
from galenic.core.errors import BackboneError, ConfigError
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.tasks import noise_mask

TINY = [
    "backbone=builtin:resnet10?width=4", "noise.policy_backbone=builtin:resnet10?width=2",
    "input.size=32", "noise.grid=4", "noise.kernel=5", "noise.sigma=2", "schedule.epochs=2",
    "schedule.lr=2e-3", "finetune.epochs=2", "finetune.lr=1e-3", "average_last=2",
    "score.resamples=0",
]  # fmt: skip


def start(data: Path, out: Path, *overrides: str) -> Run:
    return launch.run("noise-mask", data, out=out, overrides=[*TINY, *overrides], cache=False)


def test_policy_is_dropped_and_what_it_was_is_kept(bright_squares: Path, tmp_path: Path) -> None:
    run = start(bright_squares, tmp_path)
    kept = load_file(run.path / "heated" / "policy.safetensors")
    assert kept["base"].shape == (2, 16)
    assert (run.path / "heated" / "masks.png").is_file()
    final = load_file(run.path / "adapter" / "tensors.safetensors")
    assert not [name for name in final if "polic" in name or "mask" in name]
    job, objective = noise_mask.load(run)
    job.heated = None
    again = predict(objective, job.rows("test"), collate=job.collate)["logits"]
    table = pd.read_parquet(run.path / "predictions.parquet")
    scores = table.loc[table["split"] == "test", "score_0"]
    np.testing.assert_allclose(1 / (1 + np.exp(-again)), scores, rtol=1e-5)


def test_policy_learns_at_its_own_rate(bright_squares: Path, tmp_path: Path) -> None:
    def moved(name: str, *overrides: str) -> torch.Tensor:
        run = start(bright_squares, tmp_path / name, "finetune=null", *overrides)
        state = load_file(run.path / "heated" / "policy.safetensors")
        return state["heads.0.6.weight"]

    still = moved("untrained", "noise.policy=untrained")
    learned = moved("learned", "noise.baseline=none", "schedule.warmup=0", "schedule.epochs=0.5")
    # One step of Adam is its rate: a tenth of the classifier's.
    assert (learned - still).abs().max().item() == pytest.approx(2e-4, rel=0.05)


def test_without_fine_tuning_the_heated_weights_are_final(
    bright_squares: Path, tmp_path: Path
) -> None:
    run = start(bright_squares, tmp_path, "finetune=null")
    heated = load_file(run.path / "heated" / "adapter" / "tensors.safetensors")
    final = load_file(run.path / "adapter" / "tensors.safetensors")
    assert all(torch.equal(heated[name], final[name]) for name in final)


def test_resumed_run_ends_as_one_that_was_not_cut(
    bright_squares: Path, tmp_path: Path, monkeypatch
):
    whole = start(bright_squares, tmp_path / "a")
    tell = noise_mask.NoiseMaskJob._finetune

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(noise_mask.NoiseMaskJob, "_finetune", cut)
    with pytest.raises(KeyboardInterrupt):
        start(bright_squares, tmp_path / "b")
    monkeypatch.setattr(noise_mask.NoiseMaskJob, "_finetune", tell)
    left = next((tmp_path / "b").glob("noise-mask*"))
    launch.run("noise-mask", resume=left)
    for name in ("heated/policy.safetensors", "adapter/tensors.safetensors"):
        first, again = load_file(whole.path / name), load_file(left / name)
        assert all(torch.equal(first[key], again[key]) for key in first), name


@pytest.mark.parametrize("policy", ["uniform", "none"])
def test_controls_run(policy: str, bright_squares: Path, tmp_path: Path) -> None:
    run = start(bright_squares, tmp_path, f"noise.policy={policy}", "schedule.epochs=8")
    assert run.state == "finished"
    assert (run.path / "heated" / "masks.png").is_file() == (policy == "uniform")
    assert run.metrics["auroc"].value > 0.8


def test_what_cannot_be_heated_is_refused(bright_squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tuner\\.method=none"):
        start(bright_squares, tmp_path, "tuner.method=none")
    with pytest.raises(ConfigError, match="under 64"):
        start(bright_squares, tmp_path, "noise.kernel=65")
    with pytest.raises(ConfigError, match="no middle"):
        start(bright_squares, tmp_path, "noise.kernel=4")
    with pytest.raises(BackboneError, match="a noise mask lies on a picture"):
        launch.run("noise-mask", "sample:icd10", out=tmp_path, quick=True)


def test_a_run_killed_behind_its_training_is_averaged_again(
    bright_squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(bright_squares, tmp_path / "a")

    def cut(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(noise_mask.NoiseMaskJob, "evaluate", cut)
        start(bright_squares, tmp_path / "b")
    left = next((tmp_path / "b").glob("noise-mask*"))
    launch.run("noise-mask", resume=left)
    first, again = (load_file(path / "adapter/tensors.safetensors") for path in (whole.path, left))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_an_average_of_last_epochs_does_not_go_with_patience(
    bright_squares: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="average_last=0"):
        start(bright_squares, tmp_path, "finetune.patience=1")
