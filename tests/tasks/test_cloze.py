"""A cloze from texts to scores: what trains, what stays, what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from galenic import launch
from galenic.core.errors import ConfigError, DataError
from galenic.core.run import Run
from galenic.models.backbone import open_backbone
from galenic.tasks import cloze

RECIPE = "clinical-prompt-learning"


@pytest.fixture(scope="module")
def notes() -> pd.DataFrame:
    rows = range(60)
    words = ["cough and fever", "fracture of the arm", "rash on the skin"]
    return pd.DataFrame(
        {
            "note": [f"{words[row % 3]} since {row} days" for row in rows],
            "label": [["lung", "bone", "skin"][row % 3] for row in rows],
        }
    )


def start(notes: pd.DataFrame, folder: Path, *overrides: str) -> Run:
    notes.to_csv(folder / "notes.csv", index=False)
    return launch.run(
        RECIPE, folder / "notes.csv", out=folder / "runs", columns={"inputs": ["note"]},
        overrides=["adapt.when=never", "score.resamples=20", *overrides],
    )  # fmt: skip


def test_prompts_and_verbaliser_train_and_nothing_else(notes: pd.DataFrame, tmp_path: Path) -> None:
    run = start(notes, tmp_path, "schedule.epochs=6", "schedule.batch_size=8")
    adapter = load_file(run.path / "adapter" / "tensors.safetensors")
    template = cloze.Template(
        "{text} [soft:This is about] {mask}.", open_backbone("builtin:minilm").tokenizer
    )
    assert {name: tuple(t.shape) for name, t in adapter.items()} == {"prompts": (3, 384)}
    assert run.read_json("cost.json")["trainable"] == 3 * 384 + 3 * 384
    before = open_backbone("builtin:minilm").network.get_input_embeddings().weight
    assert not torch.equal(adapter["prompts"], before[template.soft_ids])
    job, objective = cloze.load(run)
    fresh = open_backbone("builtin:minilm").network.state_dict()
    held = job.backbone.network.network.state_dict()
    assert all(torch.equal(held[name], value) for name, value in fresh.items())
    assert run.metrics["balanced_accuracy"].value > 0.9
    assert not objective.training


def test_the_reloaded_run_predicts_the_same(notes: pd.DataFrame, tmp_path: Path) -> None:
    run = start(notes, tmp_path, "schedule.epochs=2")
    job, objective = cloze.load(run)
    table = pd.read_parquet(run.path / "predictions.parquet")
    table = table[table["split"] == "test"].sort_values("row")
    rows = table["row"].tolist()
    batch = job.collate([job.inputs[row] for row in rows])
    with torch.no_grad():
        scores = objective(**batch)["logits"].softmax(-1).numpy()
    found = table.filter(like="score").to_numpy()
    assert abs(scores - found).max() < 1e-5


def test_manual_words_on_a_frozen_model_are_zero_shot(
    notes: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(
        notes, tmp_path, "template={text} it is about the {mask}.", "verbalizer.kind=manual"
    )
    assert run.read_json("cost.json")["trainable"] == 0
    assert run.read_json("cost.json")["steps"] == 0
    assert "zero-shot" in capsys.readouterr().err


def test_the_fresh_head_is_trained_and_taken_up_again(notes: pd.DataFrame, tmp_path: Path) -> None:
    run = start(notes, tmp_path, "adapt.when=auto", "schedule.epochs=1", "adapt.schedule.epochs=1")
    kept = load_file(run.path / cloze.MASKED)
    fresh = open_backbone("builtin:minilm").network.state_dict()
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(kept[f"network.{name}"], fresh[name])
    job, _ = cloze.load(run)
    assert torch.equal(job.backbone.network.network.state_dict()[name], kept[f"network.{name}"])


def test_a_measure_has_no_words(notes: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="continuous"):
        start(notes.assign(label=[row / 7 for row in range(60)]), tmp_path)


def test_a_head_beside_the_verbaliser_is_refused(notes: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="verbalizer"):
        start(notes, tmp_path, "head.dropout=0.1")
