"""Distillation as a task: who may teach, when it is asked, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from galenic import launch
from galenic.core.errors import BackboneError, ConfigError, DataError
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.data.augment import AugmentConfig
from galenic.data.cohort import Cohort
from galenic.models.backbone import open_backbone
from galenic.objectives.classification import Classifier
from galenic.objectives.distillation import Distiller
from galenic.objectives.imbalance import as_classes
from galenic.pipeline.frozen import Rows
from galenic.pipeline.inputs import Inputs
from galenic.tasks import classify, distill

CNN = "builtin:resnet10?width=4"
VIT = "builtin:vit?width=16&depth=2&heads=2&patch=8&image=32"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight pictures of two patients' tissues, and the same under other names."""
    folder = tmp_path_factory.mktemp("distill")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(48):
        waves = np.sin(np.arange(32) / (1 + 2 * (number % 2)))[:, None]
        pixels = 128 + 50 * waves + rng.normal(0, 10, (32, 32))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        name = ["normal", "tumour"][number % 2]
        other = ["healthy", "tumour"][number % 2]
        rows.append({"image": f"{number}.png", "label": name, "other": other, "patient_id": number})
    pd.DataFrame(rows).to_csv(folder / "pictures.csv", index=False)
    return folder


def start(place: Path, recipe: str, *overrides: str, label: str = "label", **values: Any) -> Run:
    return launch.run(
        recipe,
        place / "pictures.csv",
        out=place / "runs",
        columns={"inputs": ["image"], "label": label},
        overrides=["score.resamples=0", "schedule.epochs=2", "schedule.batch_size=16", *overrides],
        **values,
    )


@pytest.fixture(scope="module")
def teacher(place: Path) -> Run:
    return start(place, "linear", f"backbone={CNN}", "input.size=32")


@pytest.fixture(scope="module")
def neighbours(place: Path) -> Run:
    return start(place, "knn", f"backbone={CNN}", "input.size=32")


def taught(place: Path, teacher: Run, *overrides: str, **values: Any) -> Run:
    return start(
        place, "deit", f"backbone={VIT}", f"distill.teacher={teacher.path}", *overrides, **values
    )


def scores(run: Run) -> np.ndarray[Any, Any]:
    return pd.read_parquet(run.path / "predictions.parquet")["score_0"].to_numpy()


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_pictures_that_do_not_change_are_shown_to_the_teacher_once(
    place: Path, teacher: Run, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    forward = Classifier.forward

    def counted(self: Classifier, *args: Any, **kwargs: Any) -> Any:
        found = forward(self, *args, **kwargs)
        asked.append(len(found["logits"]))
        return found

    monkeypatch.setattr(Classifier, "forward", counted)
    ahead = taught(place, teacher, f"distill.mode={mode}")
    train = len(ahead.read_json("splits.json")["train"])
    assert sum(asked) == train
    asked.clear()
    still = ["input.augment.shift=0", "input.augment.intensity=0"]
    anew = taught(place, teacher, f"distill.mode={mode}", *still)
    assert sum(asked) == 2 * train
    np.testing.assert_allclose(scores(anew), scores(ahead), atol=1e-4)


@pytest.mark.parametrize("augment", [[], ["input.augment={shift: 0, intensity: 0}"]])
def test_votes_of_neighbours_teach_what_they_say(
    place: Path, neighbours: Run, augment: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons: list[tuple[Tensor, Tensor]] = []
    lesson = Distiller._lesson

    def heard(self: Distiller, taught: Tensor, teacher: Tensor) -> Tensor:
        lessons.append(as_classes(teacher).softmax(dim=1))
        return lesson(self, taught, teacher)

    monkeypatch.setattr(Distiller, "_lesson", heard)
    run = taught(place, neighbours, "schedule.epochs=1", *augment)
    shares = torch.cat(lessons)[:, 1].sort().values.numpy()
    job, teacher = classify.load(neighbours)
    train = run.read_json("splits.json")["train"]
    rows = Rows(train, job.targets, inputs=job.inputs)
    votes = np.sort(predict(teacher, rows, collate=job.collate)["logits"])
    assert 0.1 < (votes > 0.5).mean() < 0.9
    np.testing.assert_allclose(shares, votes.clip(1e-4, 1 - 1e-4), atol=1e-5)


def test_what_was_saved_predicts_the_same_and_opens_as_a_backbone(
    place: Path, teacher: Run
) -> None:
    run = taught(place, teacher, "input.augment.flip=true")
    job, student = distill.load(run)
    logits = predict(student, job.rows("test"), collate=job.collate)["logits"]
    table = pd.read_parquet(run.path / "predictions.parquet")
    found = table[table["split"] == "test"]["score_0"].to_numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), found, atol=1e-5)
    cost = run.read_json("cost.json")
    assert cost["trainable"] == cost["total"] == sum(p.numel() for p in student.parameters())
    opened = open_backbone(str(run.path))
    assert (opened.prefix_tokens, opened.grid) == (2, (4, 4))
    state = job.backbone.network.state_dict()
    assert all((state[n] == t).all() for n, t in opened.network.state_dict().items())


@pytest.mark.parametrize("channels", [1, 3])
def test_student_and_teacher_see_one_draw(place: Path, channels: int) -> None:
    cohort = Cohort.open(place / "pictures.csv", inputs=["image"])
    student = open_backbone(VIT)
    teacher = open_backbone(CNN, size=64, channels=channels)
    augment = AugmentConfig(
        crop=(0.3, 0.9), flip=True, turns=True, shift=0.2, intensity=0.3, channel_drop=0.3
    )
    options: dict[str, Any] = {"augment": augment, "seed": 5}
    shared = distill._Shared(cohort, student, asked=Inputs(cohort, teacher), **options)
    alone = Inputs(cohort, student, **options)
    for row in range(4):
        for inputs in (shared, alone):
            inputs.set_epoch(row)
        seen = shared[row]
        own, theirs = seen["pixel_values"], seen["teacher.pixel_values"]
        # What a student is shown does not depend on whether somebody else is asked.
        np.testing.assert_array_equal(own, alone[row]["pixel_values"])
        assert theirs.shape == (channels, 64, 64)
        # Grey as stored: of what is not dropped, both show one picture.
        mean, std = (
            np.reshape(side, (-1, 1, 1)) for side in (student.inputs.mean, student.inputs.std)
        )
        spec = teacher.inputs
        grey = (own * std + mean).max(axis=0)
        large = (theirs * np.reshape(spec.std, (-1, 1, 1)) + np.reshape(spec.mean, (-1, 1, 1))).max(
            axis=0
        )
        small = large.reshape(32, 2, 32, 2).mean(axis=(1, 3))
        assert np.corrcoef(grey.ravel(), small.ravel())[0, 1] > 0.9


def test_alone_it_trains_its_teacher_on_the_same_split(place: Path) -> None:
    run = start(place, "deit", f"backbone={VIT}", seed=4, quick=True)
    made = Run.open(run.path / "teacher")
    assert made.state == "finished"
    first, second = (found.read_json("splits.json") for found in (run, made))
    assert {part: first[part] for part in ("train", "val", "test")} == {
        part: second[part] for part in ("train", "val", "test")
    }


def test_a_teacher_of_other_classes_is_refused_by_their_names(place: Path, teacher: Run) -> None:
    with pytest.raises(ConfigError, match="lacks healthy and it also has normal"):
        taught(place, teacher, label="other")


def test_a_teacher_that_saw_the_test_or_the_truth_is_refused(place: Path, teacher: Run) -> None:
    with pytest.raises(DataError, match="samples of the test part"):
        taught(place, teacher, seed=7)
    with pytest.raises(ConfigError, match="true labels"):
        taught(place, teacher, shuffle_labels=True)


@pytest.mark.parametrize(
    ("overrides", "kind", "says"),
    [
        ([f"backbone={CNN}"], BackboneError, "no distillation token"),
        (["tuner.method=none"], ConfigError, "Nothing of the student trains"),
        (["distill.alpha=2"], ConfigError, "alpha"),
        (["distill.mode=sfot"], ConfigError, "soft"),
    ],
)
def test_what_cannot_be_asked_is_said(
    place: Path, teacher: Run, overrides: list[str], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        taught(place, teacher, *overrides)


def test_a_measurement_cannot_be_taught(place: Path, teacher: Run) -> None:
    table = pd.read_csv(place / "pictures.csv").assign(age=np.linspace(20.5, 80, 48))
    table.to_csv(place / "ages.csv", index=False)
    with pytest.raises(ConfigError, match="no class to teach"):
        launch.run(
            "deit", place / "ages.csv", out=place / "runs",
            columns={"inputs": ["image"], "label": "age"}, overrides=[f"backbone={VIT}"],
        )  # fmt: skip
