"""Sections of the report: what runs of single tasks wrote is drawn, and nobody is named."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from galenic import launch
from galenic.app import report
from galenic.app.report import plots
from galenic.app.report.fitting import phases
from galenic.app.report.grid import _drawn
from galenic.core.run import Run

SECRET = 987_000
PICTURE = ["input.size=32", "backbone=builtin:resnet10?width=4", "score.resamples=50"]
STAYS = [
    "network.width=16", "network.time_width=8", "network.heads=2", "network.layers=1",
    "series.window_hours=24", "series.steps=8", "score.resamples=50", "schedule.epochs=1",
    "network.gate=batch_seq",
]  # fmt: skip
HISTORIES = [
    "sizes.layers=1", "sizes.width=16", "length=64", "score.resamples=50", "pretraining.epochs=2",
    "schedule.epochs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty patients in hospital, one in three of whom dies there, as a folder of MEDS."""
    folder = tmp_path_factory.mktemp("events")
    rng = np.random.default_rng(0)
    first = pd.Timestamp("2026-01-01")
    rows: list[dict[str, Any]] = []
    for number in range(60):
        end = first + pd.Timedelta(days=9 if number % 3 == 0 else 4)
        own: list[dict[str, Any]] = [
            {"code": "MEDS_BIRTH", "time": pd.Timestamp("1960-06-01")},
            {"code": "ENCOUNTER//IMP", "time": first, "end": end},
        ]
        own += [
            {"code": f"LAB//{name}", "time": first + pd.Timedelta(hours=hour),
             "numeric_value": rng.normal()}
            for hour in range(1, 60, 6) for name in ("sodium", "urea")
        ]  # fmt: skip
        own += [{"code": "MEDS_DEATH", "time": end}] * (number % 3 == 0)
        rows += [row | {"subject_id": SECRET + number} for row in own]
    (folder / "data").mkdir()
    pd.DataFrame(rows).to_parquet(folder / "data" / "0.parquet")
    return folder


def page_of(run: Run) -> str:
    """The page, which names nobody and asks for nothing from outside."""
    text = report.write(run.path).read_text(encoding="utf-8")
    assert not re.search(rf"\b{SECRET // 1000}\d{{3}}\b", text)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    assert "nan" not in " ".join(re.findall(r"(?:points|cx|cy|x1|y1)=\"([^\"]*)\"", text))
    return text


def test_noise_masks_and_both_phases_are_drawn(bright_squares: Path, tmp_path: Path) -> None:
    asked = [
        "noise.policy_backbone=builtin:resnet10?width=2", "noise.grid=4", "noise.kernel=5",
        "schedule.epochs=2", "finetune.epochs=2",
    ]  # fmt: skip
    run = launch.run(
        "noise-mask", bright_squares, out=tmp_path, overrides=PICTURE + asked, cache=False
    )
    text = page_of(run)
    masks = (run.path / "heated" / "masks.png").read_bytes()
    assert base64.b64encode(masks).decode() in text
    assert "4 × 4 cells, blurred over 5 pixels" in text
    for name in ("under noise", "without noise"):
        assert text.count(f"<figcaption>Training loss, {name}</figcaption>") == 1
    (run.path / "heated" / "masks.png").unlink()
    assert "Noise masks" not in page_of(run)


def test_every_probe_is_drawn_and_the_chosen_one_marked_once(
    bright_squares: Path, tmp_path: Path
) -> None:
    asked = ["probe.blocks=[1,3]", "probe.lrs=[1e-3,1e-2]", "schedule.epochs=2"]
    run = launch.run(
        "dinov2-radiology", bright_squares, out=tmp_path, overrides=PICTURE + asked, cache=False
    )
    text = page_of(run)
    assert text.count('<span class="tag">chosen</span>') == 1
    chosen = run.read_json("probe.json")["chosen"]
    assert f"learning rate of <b>{chosen['lr']:g}</b>" in text
    for name in ("last block", "last block and mean token", "last 3 blocks"):
        assert f"</span>{name}</li>" in text
    drawn = re.search(r'aria-label="Probes: AUROC on validation">(.*?)</svg>', text)
    assert drawn and drawn[1].count("<circle") == 8 and drawn[1].count("<polyline") == 4
    assert "All 8 probes" in text


def test_gates_are_means_of_the_test_stays(events: Path, tmp_path: Path) -> None:
    run = launch.run("irregular-ehr", events, out=tmp_path, overrides=STAYS, cache=False)
    found = run.read_json("gates.json")
    table = pd.read_parquet(run.path / "gates.parquet").groupby("hour")["gate"].mean()
    points = found["gates"]["series"]
    assert [point["hour"] for point in points] == pytest.approx(table.index.tolist())
    assert [point["value"] for point in points] == pytest.approx(table.tolist(), rel=1e-5)
    channels = found["channels"]["series"]
    for one in [*points, *channels]:
        assert one["low"] <= one["value"] <= one["high"]
    assert sum(one["value"] for one in channels) == pytest.approx(1, abs=1e-5)
    text = page_of(run)
    drawn = re.search(r'aria-label="Gates over the test stays">(.*?)</svg>', text)
    assert drawn and drawn[1].count("<circle") == 8
    assert "hours since the window began" in drawn[1]
    best = max(channels, key=lambda one: one["value"])["channel"]
    order = re.findall(r'<th scope="row">(LAB//\w+|sodium|urea)</th>', text)
    assert len(order) == 2 and order[0] == best
    assert "Backbone <code></code>" not in text


def test_one_gate_a_stay_is_a_sentence(events: Path, tmp_path: Path) -> None:
    asked = [*STAYS, "network.gate=batch"]
    run = launch.run("irregular-ehr", events, out=tmp_path, overrides=asked, cache=False)
    [gate] = run.read_json("gates.json")["gates"]["series"]
    assert gate["hour"] is None
    text = page_of(run)
    assert f"The mean gate of <b>series</b> is {gate['value']:.3f}" in text
    assert "Gates over the test stays" not in text


def test_each_task_of_histories_has_a_row(events: Path, tmp_path: Path) -> None:
    run = launch.run("ehrmamba", events, out=tmp_path, overrides=HISTORIES, cache=False)
    text = page_of(run)
    section = text.split("<h3>Tasks</h3>")[1].split("</table>")[0]
    for task in run.read_json("tasks.json"):
        row = section.split(f'<th scope="row">{task["task"].replace("_", " ")}</th>')[1]
        row = row.split("</tr>")[0]
        assert f'{task["train"]["positive"]} <span class="soft">of {task["train"]["n"]}' in row
        for name in ("auroc", "brier", "f1", "balanced_accuracy"):
            figure = report.figure(task["metrics"][name]["value"])
            assert f">{figure} <span" in row
    for label in ("Validation perplexity, next token", "Loss, all tasks"):
        assert text.count(f"<figcaption>{label}</figcaption>") == 1
    run.write_json("tasks.json", [{"task": "<b>", "train": {"n": 1, "positive": 0},
                                   "test": {"n": 0, "positive": 0}}])  # fmt: skip
    text = page_of(run)
    assert "&lt;b&gt;" in text and "no test sample asks this" in text


def test_pictures_and_the_loss_of_pretraining(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "pretrained")
    data = {"title": "", "name": "films", "n": 4, "patients": 4, "kind": "unlabelled"}
    known = data | {"classes": [], "fingerprint": "", "license": ""}
    run.start({}, recipe="mae-thorax", task="pretrain", command=["galenic"], seed=0, data=known)
    sheet = tmp_path / "sheet.png"
    Image.new("L", (12, 4)).save(sheet)
    run.write_bytes("pictures.png", sheet.read_bytes())
    for epoch in (1, 2):
        for event in ("train", "validation"):
            run.log({"event": event, "step": epoch, "epoch": epoch, "loss": 1 / epoch})
    # A figure that was not defined is null in the log, and left out.
    run.log({"event": "validation", "step": 3, "epoch": 3, "loss": None})
    run.finish()
    text = page_of(run)
    assert base64.b64encode(sheet.read_bytes()).decode() in text
    assert "<span>input</span><span>seen</span><span>made</span>" in text
    [drawn] = re.findall(r'aria-label="Loss">(.*?)</figure>', text)
    assert drawn.count("<polyline") == 2 and drawn.count("<circle") == 4
    assert "training</li>" in drawn and "validation</li>" in drawn


def fit(*steps: int, kind: str = "train") -> list[dict[str, Any]]:
    return [{"event": kind, "step": step, "epoch": float(step), "loss": 0.0} for step in steps]


SAVED = [{"event": "checkpoint", "step": 3}]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], []),
        (fit(1, 2, 3) + SAVED, [[1, 2, 3]]),
        (fit(1, 2, 3) + SAVED + fit(1, 5) + SAVED, [[1, 2, 3], [1, 5]]),
        (fit(1) + SAVED + fit(1), [[1], [1]]),
        # Cut off behind a checkpoint, and before the first one.
        (fit(1, 2, 3) + SAVED + fit(4, 5) + fit(4, 5, 6), [[1, 2, 3, 4, 5, 6]]),
        (fit(1, 2) + fit(1, 2, 3), [[1, 2, 3]]),
        (fit(1, 3) + fit(3, kind="validation") + SAVED, [[1, 3, 3]]),
    ],
)
def test_fits_are_told_apart(events: list[dict[str, Any]], expected: list[list[int]]) -> None:
    assert [[event["step"] for event in one] for one in phases(events)] == expected


def point(at: float, value: float | None, low: float | None = None) -> dict[str, Any]:
    return {"at": at, "value": value, "low": low, "high": None if low is None else 0.9}


def test_a_figure_without_an_interval_has_no_whisker() -> None:
    options: dict[str, Any] = {"x": "x", "y": "y", "label": "z", "joined": True}
    drawn = plots.intervals(
        [("a", [point(0, 0.5), point(1, 0.6, 0.2), point(2, None)])], [(0, "<i>")], **options
    )
    assert drawn.count("<circle") == 2 and drawn.count('<line class="line') == 1
    assert "&lt;i&gt;" in drawn and "<i>" not in drawn
    assert plots.intervals([("a", [point(0, None)])], [], **options) == ""
    many = plots.intervals([(str(k), [point(0, k / 10)]) for k in range(8)], [], **options)
    keys = re.findall(r'class="key ([^"]*)"', many)
    assert len(set(keys)) == 8 and keys[6:] == ["s0 again", "s1 again"]


def test_whiskers_end_where_the_metric_does() -> None:
    points = [{"at": 0.0, "value": 0.9, "low": -0.3, "high": 1.7}]
    assert _drawn(points, "auroc") == [{"at": 0.0, "value": 0.9, "low": 0.0, "high": 1.0}]
    assert _drawn(points, "rmse") == points
    assert points[0]["low"] == -0.3


def test_nothing_trained_stands_apart_under_its_own_name() -> None:
    def arm(name: str, share: float) -> dict[str, Any]:
        return {"name": name, "x": share, "value": 0.9, "low": 0.8, "high": 1.0, "pareto": True}

    def ticks(*arms: dict[str, Any]) -> list[tuple[float, str]]:
        drawn = plots.cost(arms, x="share", y="auroc", label="", log=True)
        found = re.findall(r'class="tick" text-anchor="middle" x="([\d.]+)"[^>]*>([^<]+)<', drawn)
        return [(float(place), name) for place, name in found]

    both = ticks(arm("knn", 0.0), arm("full", 1.0))
    assert [name for _, name in both] == ["0", "100%"]
    marks = re.findall(r'cx="([\d.]+)"', plots.cost(
        [arm("knn", 0.0), arm("full", 1.0)], x="share", y="auroc", label="", log=True
    ))  # fmt: skip
    assert [float(mark) for mark in marks] == [place for place, _ in both]
    assert [n for _, n in ticks(arm("lora", 0.001), arm("full", 1.0))] == [
        "0.1%",
        "1%",
        "10%",
        "100%",
    ]
    assert [n for _, n in ticks(arm("knn", 0.0), arm("lora", 0.001))] == ["0", "0.1%"]
