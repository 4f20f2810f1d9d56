"""Classifiers of the other tasks say of new samples what their runs would have said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import galenic
from galenic.core.errors import ConfigError, DataError, WeightsError
from galenic.core.run import Run
from galenic.tasks import cloze

CNN = "builtin:resnet10?width=4"
VIT = "builtin:vit?width=16&depth=2&heads=2&patch=8&image=32"
FAST = ["score.resamples=0", "schedule.epochs=2", "schedule.batch_size=16", "schedule.lr=5e-3"]
FEW = {"resamples": 20}


@pytest.fixture
def pictures(bright_squares: Path, tmp_path: Path) -> Path:
    """A manifest whose folder may be lost."""
    shutil.copytree(bright_squares.parent, tmp_path / "own")
    return tmp_path / "own" / bright_squares.name


def notes(folder: Path, classes: int = 3) -> Path:
    words = ["cough and fever", "fracture of the arm", "rash on the skin"][:classes]
    names = ["lung", "bone", "skin"][:classes]
    rows = range(48)
    table = pd.DataFrame(
        {
            "note": [f"{words[row % classes]} since {row} days" for row in rows],
            "label": [names[row % classes] for row in rows],
        }
    )
    (folder / "own").mkdir()
    table.to_csv(folder / "own" / "notes.csv", index=False)
    return folder / "own" / "notes.csv"


def train(recipe: str, data: Path, *overrides: str) -> Run:
    column = "note" if data.name == "notes.csv" else "image"
    return galenic.run(
        recipe, data, out=data.parent.parent / "runs", columns={"inputs": [column]},
        overrides=[*FAST, *overrides], cache=False,
    )  # fmt: skip


def moved(data: Path, run: Run) -> Path:
    """A manifest of the test part elsewhere; all else that the run was trained on is lost."""
    table = pd.read_csv(data).iloc[run.read_json("splits.json")["test"]]
    place = data.parent.parent / "elsewhere"
    place.mkdir()
    for name in table.get("image", ()):
        shutil.copyfile(data.parent / name, place / name)
    table.to_csv(place / "new.csv", index=False)
    shutil.rmtree(data.parent)
    return place / "new.csv"


def scores_of(run: Run) -> np.ndarray[Any, Any]:
    """Of the samples in test, in their order."""
    table = pd.read_parquet(run.path / "predictions.parquet")
    return table[table["split"] == "test"].filter(regex="^score").to_numpy()


def predicted(run: Run, new: Path) -> Run:
    made = galenic.predict(run.path, new, out=run.path.parent, score=FEW)
    np.testing.assert_allclose(scores_of(made), scores_of(run), atol=1e-5)
    for name, before in run.metrics.items():
        assert made.metrics[name].value == pytest.approx(before.value, abs=1e-5), name
    return made


def test_a_classifier_that_was_heated_by_noise(pictures: Path) -> None:
    run = train(
        "noise-mask", pictures, f"backbone={CNN}", "noise.policy_backbone=builtin:resnet10?width=2",
        "input.size=32", "noise.grid=4", "noise.kernel=5", "finetune.epochs=2", "average_last=2",
    )  # fmt: skip
    predicted(run, moved(pictures, run))


def test_a_student_by_both_its_heads_and_without_its_teacher(pictures: Path) -> None:
    teacher = train("linear", pictures, f"backbone={CNN}", "input.size=32")
    run = train("deit", pictures, f"backbone={VIT}", f"distill.teacher={teacher.path}")
    shutil.rmtree(teacher.path)
    predicted(run, moved(pictures, run))


@pytest.mark.parametrize(
    ("classes", "overrides"),
    [
        (3, ["adapt.when=always", "adapt.schedule.max_steps=1"]),
        (2, ["adapt.when=never", "verbalizer.kind=manual", "template={text} [soft*2] {mask}."]),
    ],
)
def test_a_cloze_with_what_it_was_adapted_to(
    classes: int, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = notes(tmp_path, classes)
    run = train("clinical-prompt-learning", data, "schedule.max_steps=2", *overrides)
    new = moved(data, run)

    def never(*_: Any) -> None:
        raise AssertionError("new texts were trained on")

    monkeypatch.setattr(cloze, "_adapt", never)
    made = predicted(run, new)
    assert not (made.path / cloze.MASKED).exists()
    if (run.path / cloze.MASKED).exists():
        (run.path / cloze.MASKED).unlink()
        with pytest.raises(WeightsError, match="not the network that"):
            galenic.predict(run.path, new, out=tmp_path)
    table = pd.read_csv(new)
    table.assign(note=range(len(table))).to_csv(new, index=False)
    with pytest.raises(DataError, match="A cloze reads text"):
        galenic.predict(run.path, new, out=tmp_path)


@pytest.mark.parametrize("method", ["flora", "fedit", "full"])
def test_what_all_clients_have_together(method: str, pictures: Path) -> None:
    pytest.importorskip("flwr")
    asked = [f"method={method}", "rounds=1", "clients.count=3", "ranks=4", "input.size=32"]
    layers = "tuner={method: lora, target_modules: '.*convolution'}"
    run = train("flora", pictures, f"backbone={CNN}", *asked, layers)
    if method == "flora":
        # More than the first layers have room for: no tuner of this rank can be attached.
        assert run.read_json("adapter/tuner.json")["config"]["rank"] == 12
    predicted(run, moved(pictures, run))


def test_clients_that_shared_nothing_have_no_one_network(pictures: Path) -> None:
    asked = ["method=local", "rounds=1", "clients.count=2", "ranks=2"]
    run = train("flora", pictures, f"backbone={VIT}", *asked)
    with pytest.raises(ConfigError, match="as many networks as clients"):
        galenic.predict(run.path, pictures, out=run.path.parent)


def test_no_federation_is_needed_to_predict_by_what_it_left() -> None:
    code = "import sys; sys.modules['flwr'] = None; import galenic.tasks.predict"
    subprocess.run([sys.executable, "-c", code], check=True)
