"""From one label to the next: encoders that stay or move, heads that grow, rare classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from galenic import launch, tuners
from galenic.core.errors import ConfigError
from galenic.core.run import Run
from galenic.evaluation.classes import by_class
from galenic.models.backbone import Backbone, open_backbone
from galenic.objectives.regression import Huber
from galenic.tasks import classify

CNN = "builtin:resnet10?width=4"
VIT = "builtin:vit?width=16&depth=2&heads=2&patch=8&image=32"
SIZED = "input.size=32"
KINDS = ("ridge", "grid", "dot", "line")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four kinds in two groups, each with a grade: how far it can be seen."""
    folder = tmp_path_factory.mktemp("transfer")
    rng = np.random.default_rng(0)
    at = np.arange(32)
    rows = []
    for number in range(72):
        kind, grade = number % 4, number // 4 % 3
        waves = np.sin(at / (1 + kind))[:, None] * (np.ones(32) if kind % 2 else np.cos(at / 2))
        pixels = 128 + 30 * (1 + grade) * waves + rng.normal(0, 6, (32, 32))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        part = "train" if number < 48 else "val" if number < 60 else "test"
        rows.append(
            {
                "image": f"{number}.png",
                "kind": KINDS[kind],
                "group": "flat" if kind < 2 else "round",
                "three": KINDS[kind] if kind < 3 else None,
                "grade": grade,
                "patient_id": number // 2,
                "split": part,
            }
        )
    pd.DataFrame(rows).to_csv(folder / "pictures.csv", index=False)
    return folder


def start(place: Path, recipe: str, label: str, *overrides: str, **columns: Any) -> Run:
    return launch.run(
        recipe,
        place / "pictures.csv",
        out=place / "runs",
        cache=True,
        columns={"inputs": ["image"], "label": label, "split": "split", **columns},
        overrides=["score.resamples=20", "schedule.batch_size=16", "split.how=given", *overrides],
    )


@pytest.fixture(scope="module")
def view(place: Path) -> Run:
    return start(place, "full", "three", f"backbone={CNN}", SIZED, "schedule.epochs=2")


@pytest.fixture(scope="module")
def group(place: Path) -> Run:
    return start(place, "full", "group", f"backbone={CNN}", SIZED, "schedule.epochs=2")


def states(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def tensors(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "adapter" / "tensors.safetensors")


def test_the_next_stage_begins_with_the_encoder_of_the_last_and_a_frozen_one_ends_so(
    place: Path, view: Run
) -> None:
    first = tensors(view)
    assert any("running_mean" in name for name in first)
    found = open_backbone(str(view.path)).network.state_dict()
    assert set(first) == set(found)
    assert all(torch.equal(first[name], tensor) for name, tensor in found.items())
    graded = start(
        place,
        "linear",
        "grade",
        f"backbone={view.path}",
        SIZED,
        "schedule.epochs=3",
        kind="ordinal",
    )
    job, _ = classify.load(graded)
    after = job.backbone.network.state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in after.items())
    assert graded.read_json("cost.json")["trainable"] == job.backbone.width * 3 + 3


def stepped(backbone: Backbone, train: bool = True) -> None:
    """One step on noise."""
    network = backbone.network.train(train)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad] or [
        nn.Parameter(torch.zeros(1))], lr=0.1)  # fmt: skip
    pooled = backbone(pixel_values=torch.randn(4, 3, 32, 32)).pooled
    if pooled.requires_grad:
        pooled.square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("frozen_blocks", [0, 1])
def test_the_head_alone_first_then_the_rest_with_its_statistics(frozen_blocks: int) -> None:
    backbone = open_backbone(CNN, size=32)
    config = tuners.parse_tuner(
        {"method": "full", "frozen_blocks": frozen_blocks, "head_first": {"epochs": 2, "lr": 0.1}}
    )
    tuners.attach(backbone, config)
    wanted = {n for n, p in backbone.network.named_parameters() if p.requires_grad}
    head, rest = tuners.hooks(backbone, config).stages
    assert (dict(head.schedule), dict(rest.schedule)) == ({"epochs": 2, "lr": 0.1}, {})
    before = states(backbone.network)
    head.begin()
    stepped(backbone)
    held = backbone.network.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in held.items())
    rest.begin()
    assert {n for n, p in backbone.network.named_parameters() if p.requires_grad} == wanted
    stepped(backbone)
    moved = {n for n, t in backbone.network.state_dict().items() if not torch.equal(before[n], t)}
    assert wanted <= moved
    statistics = {n for n in before if n.endswith(("running_mean", "running_var"))}
    freed = {n for n in statistics if f"{n.rpartition('.')[0]}.weight" in wanted}
    assert statistics & moved == freed
    assert (frozen_blocks == 0) == (freed == statistics)


def test_a_run_goes_through_both_stages(place: Path) -> None:
    run = start(
        place, "full", "kind", f"backbone={CNN}", SIZED, "schedule.epochs=2",
        "tuner.head_first.epochs=1", "tuner.head_first.lr=1e-2",
    )  # fmt: skip
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {"head", "train"}
    assert run.read_json("cost.json")["steps"] == 3 + 6


def scores(run: Run) -> np.ndarray[Any, Any]:
    table = pd.read_parquet(run.path / "predictions.parquet")
    return table[table["split"] == "test"].filter(regex=r"^score_\d+$").to_numpy()


STILL = ("schedule.max_steps=1", "schedule.lr=1e-12", "tuner.method=none")


def test_a_new_class_leaves_what_was_known_between_the_old_ones(place: Path, view: Run) -> None:
    grown = start(
        place,
        "linear",
        "kind",
        f"backbone={view.path}",
        f"head.grow_from={view.path}",
        SIZED,
        *STILL,
    )
    classes = grown.read_json("metrics.json")["classes"]
    assert classes == sorted(KINDS)
    old = view.read_json("metrics.json")["classes"]
    table = pd.read_parquet(grown.path / "predictions.parquet")
    first = pd.read_parquet(view.path / "predictions.parquet").set_index("row")
    both = table[table["row"].isin(first.index)]
    new = both[[f"score_{classes.index(name)}" for name in old]].to_numpy()
    before = first.loc[both["row"], [f"score_{place}" for place in range(3)]].to_numpy()
    np.testing.assert_allclose(new / new.sum(axis=1, keepdims=True), before, atol=1e-5)


def test_subtypes_summed_are_the_classes_they_came_of(place: Path, group: Run) -> None:
    mapping = "{ridge: flat, grid: flat, dot: round, line: round}"
    grown = start(
        place, "linear", "kind", f"backbone={group.path}", f"head.grow_from={group.path}",
        f"head.mapping={mapping}", SIZED, *STILL,
    )  # fmt: skip
    classes = grown.read_json("metrics.json")["classes"]
    rounded = scores(grown)[:, [classes.index("dot"), classes.index("line")]].sum(axis=1)
    np.testing.assert_allclose(rounded, scores(group)[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["head.mapping={dot: ronud}"], "round"),
        ([], "knows none of the classes"),
        (["backbone=builtin:resnet10?width=8", "head.mapping={dot: round}"], "features"),
    ],
)
def test_a_head_that_cannot_grow_says_why(
    place: Path, group: Run, overrides: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        start(
            place, "linear", "kind", f"backbone={group.path}", f"head.grow_from={group.path}", SIZED,
            *STILL, *overrides,
        )  # fmt: skip


@pytest.mark.parametrize(
    "overrides", [["head.mapping={dot: round}"], ["head.grow_from=runs/x", "head.kind=knn"]]
)
def test_keys_of_growth_that_would_do_nothing_are_refused(
    place: Path, overrides: list[str]
) -> None:
    with pytest.raises(ConfigError, match="needs"):
        start(place, "linear", "kind", SIZED, *overrides)


def test_grades_are_learnt_in_their_order(place: Path, view: Run) -> None:
    run = start(
        place, "linear", "grade", f"backbone={view.path}", "head.kind=cumulative", SIZED,
        "schedule.epochs=4", kind="ordinal",
    )  # fmt: skip
    found = run.read_json("metrics.json")
    assert found["main"] == "quadratic_kappa"
    chances = scores(run)
    table = pd.read_parquet(run.path / "predictions.parquet")
    truth = table[table["split"] == "test"]["label"].to_numpy()
    away = np.abs(chances.argmax(axis=1) - truth).mean()
    assert found["test"]["mae"]["value"] == pytest.approx(away)
    _, objective = classify.load(run)
    assert (objective.head.thresholds.diff() > 0).all()
    for label, kind in (("three", None), ("grade", "continuous")):
        with pytest.raises(ConfigError, match="no grades in an order"):
            start(
                place, "linear", label, f"backbone={CNN}", "head.kind=cumulative", SIZED, kind=kind
            )


@pytest.mark.parametrize(
    ("label", "overrides", "says"),
    [
        ("kind", ["head.loss.kind=weighted", "schedule.balance=true"], "over-correct"),
        ("kind", ["head.loss.kind=focal", "head.label_smoothing=0.1"], "takes the place"),
        ("kind", ["head.loss.kind=cost_matrix", "head.loss.costs=[[0, 1], [1, 0]]"], "4 rows of 4"),
        ("kind", ["head.loss.kind=wieghted"], "weighted"),
        ("kind", ["head.loss.kind=huber"], "no error that is a number"),
    ],
)
def test_losses_that_do_not_go_together_are_refused(
    place: Path, label: str, overrides: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        start(place, "linear", label, f"backbone={CNN}", SIZED, *overrides)


def test_a_grade_written_down_wrong_moves_huber_less(place: Path) -> None:
    table = pd.read_csv(place / "pictures.csv")
    table["grade"] = table["grade"].astype(float)
    table.loc[0, "grade"] = 60.0
    table.to_csv(place / "slip.csv", index=False)
    errors = {}
    for loss in ("ce", "huber"):
        run = launch.run(
            "linear", place / "slip.csv", out=place / "runs",
            columns={"inputs": ["image"], "label": "grade", "kind": "continuous", "split": "split"},
            overrides=[f"backbone={CNN}", SIZED, "split.how=given",
                       "schedule.lr=3e-2",
                       "schedule.epochs=40", "schedule.weight_decay=0", "score.resamples=0",
                       f"head.loss.kind={loss}", "head.loss.delta=0.2"],
        )  # fmt: skip
        errors[loss] = run.metrics["mae"].value
        _, objective = classify.load(run)
        assert isinstance(objective.class_loss, Huber) == (loss == "huber")
    assert errors["huber"] < errors["ce"]


def test_weights_come_from_the_training_part_alone(place: Path) -> None:
    table = pd.read_csv(place / "pictures.csv")
    rare = (table["split"] == "train") & (table["kind"] == "dot") & (table.index > 12)
    table[~rare].to_csv(place / "rare.csv", index=False)
    run = launch.run(
        "linear", place / "rare.csv", out=place / "runs",
        columns={"inputs": ["image"], "label": "kind", "split": "split"},
        overrides=[f"backbone={CNN}", SIZED, "head.loss.kind=weighted", "score.resamples=0",
                   "split.how=given", "schedule.epochs=1"],
    )  # fmt: skip
    _, objective = classify.load(run)
    counts = np.array([sum((table["kind"] == name) & (table["split"] == "train") & ~rare)
                       for name in sorted(KINDS)])  # fmt: skip
    expected = counts.sum() / (4 * counts)
    np.testing.assert_allclose(objective.class_loss.weights.numpy(), expected, rtol=1e-6)


def test_classes_are_counted_by_hand() -> None:
    y = np.array([0, 0, 0, 0, 1, 1, 2])
    scores = np.eye(3)[[0, 0, 0, 1, 1, 0, 0]]
    groups = np.array([5, 5, 5, 5, 5, 9, 9])
    found = by_class(
        "multiclass", ["a", "b", "c"], y, scores, groups, resamples=0, level=0.9, seed=0
    )
    assert [row["n"] for row in found["classes"]] == [4, 2, 1]
    assert [row["patients"] for row in found["classes"]] == [1, 2, 1]
    assert [row["recall"]["value"] for row in found["classes"]] == [0.75, 0.5, 0.0]
    assert [row["precision"]["value"] for row in found["classes"]][:2] == [0.6, 0.5]
    assert found["patient_rate"]["value"] == pytest.approx((4 / 5 + 0) / 2)


def test_a_constant_answer_has_the_share_of_its_patients() -> None:
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 2, 40), rng.integers(0, 6, 40)
    found = by_class("binary", ["a", "b"], y, np.ones(40), groups, resamples=30, level=0.9, seed=0)
    shares = [y[groups == patient].mean() for patient in np.unique(groups)]
    rate = found["patient_rate"]
    assert rate["value"] == pytest.approx(np.mean(shares))
    assert rate["low"] <= rate["value"] <= rate["high"]


def test_the_report_shows_where_it_looked_and_every_class(place: Path, view: Run) -> None:
    from galenic.app import report

    transformer = start(place, "linear", "kind", f"backbone={VIT}", "schedule.epochs=1")
    for run in (view, transformer):
        shown = run.read_json("mistakes.json") + run.read_json("best.json")
        assert shown
        for sample in shown:
            with Image.open(run.path / sample["input"]["heat"]) as heat:
                assert heat.size == (32, 32)
        page = report.write(run.path).read_text()
        assert page.count("where the network looked in row") == len(shown)
        assert "Classes one by one" in page
