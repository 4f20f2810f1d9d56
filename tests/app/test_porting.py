"""`galenic patch` and `galenic port`: what they write, what they say, and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner, Result

from galenic.app.cli import app


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = Net()
    for name, size in (("old", 0.0), ("new", 0.05)):
        (tmp_path / name).mkdir()
        state = {n: v + size * torch.randn(v.shape) for n, v in net.state_dict().items()}
        save_file(state, tmp_path / name / "model.safetensors")
    model = get_peft_model(net, LoraConfig(target_modules=["proj"], init_lora_weights=False, r=2))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path


def call(folder: Path, *words: str) -> Result:
    names = {path.name: str(path) for path in folder.iterdir()} | {"out": str(folder / "out")}
    return CliRunner().invoke(app, [names.get(word, word) for word in words])


def test_a_port_is_written_and_told(folder: Path) -> None:
    done = call(folder, "port", "adapter", "--from", "old", "--onto", "new", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "drift of all 1 matrices: 0." in done.output
    assert "ported: " in done.output
    report = json.loads((folder / "out" / "port_report.json").read_text())
    assert report["scale"] == 1
    assert report["tensors"][0]["name"] == "proj.weight"
    words = ("port", "adapter", "--from", "old", "--onto", "new", "--dry-run", "--json")
    assert json.loads(call(folder, *words).stdout)["patch"] == report["patch"]


def test_a_patch_of_two_checkpoints_goes_back_onto_the_first(folder: Path) -> None:
    made = call(folder, "patch", "old", "new", "--out", str(folder / "patch.safetensors"))
    assert made.exit_code == 0, made.output
    assert "tensors that differ: 2" in made.output
    words = ("port", "patch.safetensors", "--onto", "old", "--out", "out")
    assert "nothing to port" in call(folder, *words).output
    assert call(folder, *words, "--allow", "same").exit_code == 0
    found, expected = (load_file(folder / n / "model.safetensors") for n in ("out", "new"))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["port", "adapter", "--onto", "new"], 2, "--dry-run"),
        (["port", "adapter", "--onto", "new", "--out", "out", "--allow", "sane"], 2, "'same'"),
        (["port", "adapter", "--onto", "new", "--out", "out", "--scale", "nan"], 2, "finite"),
        (["port", "adapter", "--onto", "nowhere", "--out", "out"], 4, "no checkpoint 'nowhere'"),
        (["port", "new", "--onto", "new", "--out", "out"], 4, "no adapter of PEFT"),
        (["port", "adapter", "--onto", "new", "--out", "new"], 2, "folder of its own"),
        (["patch", "old", "old", "--out", "out"], 4, "empty"),
    ],
)
def test_bad_input_gets_a_way_out_and_no_output(
    folder: Path, words: list[str], code: int, says: str
) -> None:
    done = call(folder, *words)
    assert done.exit_code == code, done.output
    assert says in done.output
    assert "Traceback" not in done.output
    assert not (folder / "out").exists()


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = call(folder, "port", "adapter", "--onto", "new", "--out", "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "nothing was written" in done.output
    assert "the old one was not named" in done.output
    assert sorted(folder.rglob("*")) == before
