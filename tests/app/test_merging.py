"""`galenic merge`: what it writes, what it says, and the way out of bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from galenic.app.cli import app
from galenic.app.report.merge import layers
from galenic.core.files import MANIFEST, atomic_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(30, 20, generator=draw)
    for name, size in (("base", 0.0), ("ecg", 0.1), ("notes", 0.1)):
        with atomic_folder(tmp_path / name) as aside:
            tuned = base + size * torch.randn(30, 20, generator=draw)
            save_file({"layers.0.w": tuned}, aside / "model.safetensors")
            (aside / "config.json").write_text("{}")
    return tmp_path


def merge(folder: Path, *words: str, **values: object) -> Result:
    recipe = {"method": "breadcrumbs", "base_model": "base", "models": ["ecg", "notes"], **values}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return CliRunner().invoke(
        app, ["merge", str(folder / "recipe.yaml"), "--out", str(folder / "out"), *words]
    )


def test_a_merge_is_written_and_told(folder: Path) -> None:
    done = merge(folder)
    assert done.exit_code == 0, done.output
    assert "15 %" in done.output
    assert "cosine of the changes ecg | notes" in done.output
    assert set(load_file(folder / "out" / "model.safetensors")) == {"layers.0.w"}
    document = json.loads(merge(folder, "--json").stdout)
    assert document["whole"]["kept"]["ecg"] == 0.15


def test_the_page_puts_tensors_together_by_layer() -> None:
    def row(name: str, a: list[float], b: list[float], kept: float) -> dict[str, object]:
        dot, size = sum(x * y for x, y in zip(a, b, strict=True)), [math.hypot(*a), math.hypot(*b)]
        return {
            "name": name,
            "shape": [2],
            "norm_base": 2.0,
            "norm": {"a": size[0], "b": size[1]},
            "kept": {"a": kept, "b": 1.0},
            "cosine": {"a | b": dot / size[0] / size[1]},
        }

    rows = layers(
        [
            row("net.10.w", [1, 2], [3, 4], 0.5),
            row("net.2.w", [1, 0], [0, 1], 0.5),
            row("net.2.b", [2, 2], [2, 2], 0.0),
            row("head", [1, 1], [-1, -1], 1.0),
        ],
        ["a", "b"],
    )
    assert [r["name"] for r in rows] == ["head", "net.2", "net.10"]
    # The two tensors of layer 2 as one vector: [1, 0, 2, 2] and [0, 1, 2, 2].
    assert rows[1]["cosine"]["a | b"] == pytest.approx(8 / 9)
    assert rows[1]["relative"]["a"] == pytest.approx(3 / math.hypot(2, 2))
    assert rows[1]["kept"] == {"a": 0.25, "b": 1.0}


def test_the_page_is_written_and_opens_offline(folder: Path) -> None:
    for name in ("base", "ecg", "notes"):
        state = {f"layers.{i}.w": torch.randn(3, 4) for i in range(3)}
        save_file(state, folder / name / "model.safetensors")
        (folder / name / MANIFEST).unlink()
    done = merge(folder, models=["ecg", {"model": "notes", "name": "<b>notes</b>"}])
    assert done.exit_code == 0, done.output
    page = (folder / "out" / "merge_report.html").read_text()
    assert page.count("<svg") == 3
    assert "&lt;b&gt;notes" in page
    assert "<b>notes" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def bent(folder: Path) -> None:
    path = folder / "ecg" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)


def cut(folder: Path) -> None:
    (folder / "ecg" / MANIFEST).unlink()
    path = folder / "ecg" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def gone(folder: Path) -> None:
    save_file({"other": torch.ones(2)}, folder / "ecg" / "model.safetensors")
    (folder / "ecg" / MANIFEST).unlink()


def foreign(folder: Path) -> None:
    draw = torch.Generator().manual_seed(5)
    stranger = {"layers.0.w": torch.randn(30, 20, generator=draw)}
    save_file(stranger, folder / "ecg" / "model.safetensors")
    (folder / "ecg" / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("spoil", "values", "code", "words"),
    [
        (bent, {}, 4, ["'model.safetensors'", "SHA-256", "ecg"]),
        (cut, {}, 4, ["'model.safetensors'", "cut short", "ecg"]),
        (gone, {}, 4, ["'layers.0.w' is missing in ecg", "missing: base"]),
        (None, {"parameters": {"density": 1.5}}, 2, ["density", "between 0 and 1"]),
        (None, {"parameters": {"density": 0.9, "gamma": 0.2}}, 2, ["sum to more than 1"]),
        (None, {"method": "linear", "parameters": {"weight": ".nan"}}, 2, ["weight"]),
        (None, {"method": "tie"}, 2, ["Did you mean 'ties'"]),
        (None, {"models": ["nowhere"]}, 4, ["There is no checkpoint 'nowhere'"]),
        (None, {"modles": []}, 2, ["Did you mean 'models'"]),
    ],
)
def test_bad_input_gets_a_way_out_and_no_output(folder: Path, spoil, values, code, words) -> None:
    if spoil is not None:
        spoil(folder)
    done = merge(folder, **values)
    assert done.exit_code == code, done.output
    for word in words:
        assert word in done.output
    assert "Traceback" not in done.output
    assert not (folder / "out").exists()


def test_another_lineage_is_a_warning(folder: Path) -> None:
    foreign(folder)
    done = merge(folder)
    assert done.exit_code == 0
    assert "warning: ecg seems to be of another lineage" in done.output
