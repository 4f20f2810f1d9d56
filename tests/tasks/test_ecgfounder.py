"""Net1D in the task classify: heads, probes, leads, weights of the loss, runs as backbones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from galenic import launch
from galenic.core.errors import ConfigError, GalenicError
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.models.backbone import open_backbone
from galenic.objectives.classification import target_loss
from galenic.tasks.classify import load

SPEC = "builtin:net1d?stem=8&widths=[8,16,16]&blocks=[1,1,1]&group_width=8&kernel=8"
SMALL = ["input.size=1000", "score.resamples=0"]
FINDINGS = ["ATRIAL FIBRILLATION", "NORMAL ECG"]


@pytest.fixture(scope="module")
def manifest(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty records of PTB-XL, with two findings that have names in the published checkpoint."""
    source = real_data / "ptbxl_500"
    table = pd.read_csv(source / "records.csv").head(60)
    made = table[["patient_id", "age", "sex"]].copy()
    made["ecg"] = [str(source / f"{name}.hea") for name in table["filename_lr"]]
    codes = table["scp_codes"]
    made["normal ecg"] = codes.str.contains("NORM").astype(float)
    made["atrial fibrillation"] = table["sex"].astype(float)
    made.loc[::9, "atrial fibrillation"] = np.nan
    path = tmp_path_factory.mktemp("tracings") / "tracings.csv"
    made.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with its head, as published."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    state = dict(open_backbone(SPEC).network.state_dict())
    state |= {"dense.weight": torch.randn(2, 16), "dense.bias": torch.randn(2)}
    save_file(state, folder / "net.safetensors")
    (folder / "tasks.txt").write_text("\n".join(FINDINGS))
    return folder / "net.safetensors"


def go(
    recipe: str, manifest: Path, out: Path, *overrides: str, label: str | list[str] = "sex"
) -> Run:
    columns = {"inputs": ["ecg"], "label": label, "patient_id": "patient_id"}
    return launch.run(
        recipe, manifest, columns=columns, out=out, quick=True, overrides=[*SMALL, *overrides]
    )


def test_what_was_trained_from_random_weights_predicts_the_same(
    manifest: Path, tmp_path: Path
) -> None:
    for recipe in ("ecgfounder", "linear"):
        run = go(recipe, manifest, tmp_path, f"backbone={SPEC}")
        torch.manual_seed(123)
        job, objective = load(Run.open(run.path))
        logits = predict(objective, job.rows("test"), collate=job.collate)["logits"]
        table = pd.read_parquet(run.path / "predictions.parquet")
        scores = table[table["split"] == "test"].filter(like="score").to_numpy()[:, -1]
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, atol=1e-5)


def test_a_linear_probe_leaves_the_network_alone(
    manifest: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run = go("ecgfounder", manifest, tmp_path, f"backbone={checkpoint}", "tuner.method=none")
    job, _ = load(Run.open(run.path))
    before = load_file(checkpoint)
    for name, tensor in job.backbone.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    head = load_file(run.path / "head.safetensors")
    assert head["linear.weight"].shape == (1, 16)
    assert head["linear.weight"].abs().sum() > 0
    assert run.read_json("cost.json")["trainable"] == 17


def test_the_head_of_the_checkpoint_needs_no_training(
    manifest: Path, checkpoint: Path, tmp_path: Path
) -> None:
    labels = ["normal ecg", "atrial fibrillation"]
    own = [f"backbone={checkpoint}", "head.kind=own"]
    run = go("ecgfounder", manifest, tmp_path, *own, "tuner.method=none", label=labels)
    assert run.read_json("cost.json")["trainable"] == 0
    head, dense = load_file(run.path / "head.safetensors"), load_file(checkpoint)
    assert torch.equal(head["linear.weight"], dense["dense.weight"][[1, 0]])
    assert [entry["label"] for entry in run.read_json("labels.json")] == labels
    tuned = go("ecgfounder", manifest, tmp_path, *own, label=labels)
    moved = load_file(tuned.path / "head.safetensors")["linear.weight"]
    assert 0 < (moved - head["linear.weight"]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("overrides", "label", "words"),
    [
        (["head.kind=own", f"backbone={SPEC}"], "sex", "brings no head"),
        (["head.kind=own", "backbone=CHECKPOINT"], "age", "is continuous"),
        (["head.kind=own", "backbone=CHECKPOINT"], "sex", "no label 'sex'"),
        (["head.pos_weight=2", f"backbone={SPEC}"], "age", "no 1 and 0"),
        (["input.ecg.leads=[I,V9]", f"backbone={SPEC}"], "sex", "V9 is missing"),
        (["input.ecg.leads=[I]", "backbone=CHECKPOINT"], "sex", "reads 12 leads; 1"),
        (["input.ecg.faults=ignore"], "sex", "refuse"),
    ],
)
def test_what_does_not_fit_is_a_clear_error(
    overrides: list[str], label: str, words: str, manifest: Path, checkpoint: Path, tmp_path: Path
) -> None:
    given = [override.replace("CHECKPOINT", str(checkpoint)) for override in overrides]
    with pytest.raises(GalenicError) as error:
        go("ecgfounder", manifest, tmp_path, *given, label=label)
    assert words in error.value.message


def test_leads_are_for_tracings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tracing"):
        launch.run("linear", "sample:icd10", out=tmp_path, overrides=["input.ecg.leads=[I]"])


def test_one_lead_and_an_age(manifest: Path, tmp_path: Path) -> None:
    run = go(
        "ecgfounder", manifest, tmp_path, f"backbone={SPEC}", "input.ecg.leads=[V2]",
        "input.augment.channel_drop=0.1", label="age",
    )  # fmt: skip
    assert run.read_json("metrics.json")["kind"] == "continuous"
    job, objective = load(Run.open(run.path))
    assert job.backbone.inputs.channels == 1
    assert objective.centre.item() > 20


def test_a_spectrogram_of_one_lead(manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    run = launch.run(
        "linear", manifest, columns={"inputs": ["ecg"], "label": "sex"}, out=tmp_path, quick=True,
        overrides=["input.ecg.leads=[II]", "input.size=64"],
    )  # fmt: skip
    job, _ = load(Run.open(run.path))
    assert (job.backbone.inputs.channels, job.backbone.inputs.ecg.leads) == (1, ("II",))


def test_a_run_is_the_backbone_of_the_next(manifest: Path, tmp_path: Path) -> None:
    first = go("ecgfounder", manifest, tmp_path, f"backbone={SPEC}", "schedule.lr=1e-2")
    trained = load_file(first.path / "adapter/tensors.safetensors")
    second = go("ecgfounder", manifest, tmp_path, f"backbone={first.path}", label="age")
    job, _ = load(Run.open(second.path))
    opened = open_backbone(str(first.path), channels=12)
    for name, tensor in opened.network.state_dict().items():
        assert torch.equal(tensor, trained[name])
    third = open_backbone(str(second.path), channels=12)
    for name, tensor in third.network.state_dict().items():
        assert torch.equal(tensor, job.backbone.network.state_dict()[name])
    random = open_backbone(f"{first.path}#random", channels=12)
    assert random.fingerprint != opened.fingerprint
    with pytest.raises(GalenicError, match=r"first_conv\.conv\.weight"):
        open_backbone(str(first.path), channels=1)
    probe = go("linear", manifest, tmp_path, f"backbone={SPEC}")
    with pytest.raises(GalenicError, match="no whole network") as error:
        open_backbone(str(probe.path))
    assert SPEC in error.value.next_step


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_weights_of_ones_and_zeros(kind: str) -> None:
    torch.manual_seed(0)
    shape = (7,) if kind == "binary" else (7, 3)
    logits, labels = torch.randn(shape), torch.randint(0, 2, shape).float()
    if kind == "multilabel":
        labels[2, 1] = labels[5, 0] = torch.nan
    total, known = 0.0, 0
    for logit, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if not np.isnan(label):
            chance = 1 / (1 + np.exp(-logit))
            total -= 3.0 * np.log(chance) if label == 1 else 0.25 * np.log(1 - chance)
            known += 1
    found = target_loss(kind, logits, labels, weights=(0.25, 3.0))
    assert found.item() == pytest.approx(total / known, rel=1e-5)
