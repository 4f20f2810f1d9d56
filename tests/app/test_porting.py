"""`galenic patch` and `galenic port`: what they write, what they say, and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel
from typer.testing import CliRunner, Result

from galenic.app.cli import app
from galenic.models.backbone import open_backbone


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


# The gate, and several bases ----------------------------------------------------------------


def drift(folder: Path, base: str) -> float:
    words = ("port", "adapter", "--from", "old", "--onto", base, "--dry-run", "--json")
    found: float = json.loads(call(folder, *words).stdout)["drift"]
    return found


@pytest.fixture
def newer(folder: Path) -> Path:
    """Beside `new`, a base that has moved much further."""
    (folder / "newer").mkdir()
    state = load_file(folder / "new" / "model.safetensors")
    far = {name: value + 0.5 * torch.randn(value.shape) for name, value in state.items()}
    save_file(far, folder / "newer" / "model.safetensors")
    return folder


def test_a_base_that_moved_too_far_is_refused_and_a_dry_run_says_so(folder: Path) -> None:
    words = ("port", "adapter", "--from", "old", "--onto", "new", "--max-drift")
    limit = drift(folder, "new")
    done = call(folder, *words, str(0.9 * limit), "--out", "out")
    assert done.exit_code == 4
    assert "is refused: the base has moved by" in done.output
    assert not (folder / "out").exists()
    done = call(folder, *words, str(0.9 * limit), "--dry-run", "--json")
    assert done.exit_code == 4
    told = json.loads(done.stdout)
    assert (told["accepted"], len(told["reasons"])) == (False, 1)
    assert call(folder, *words, str(1.1 * limit), "--out", "out").exit_code == 0
    assert json.loads((folder / "out" / "port_report.json").read_text())["accepted"] is True


def test_several_bases_get_a_folder_each(newer: Path) -> None:
    words = ("port", "adapter", "--from", "old", "--onto", "new", "--onto", "newer")
    done = call(newer, *words, "--out", "out")
    assert done.exit_code == 0, done.output
    for name in ("new", "newer"):
        single = call(newer, "port", "adapter", "--onto", name, "--out", str(newer / f"one-{name}"))
        assert single.exit_code == 0
        found, expected = (
            load_file(place / "model.safetensors")
            for place in (newer / "out" / name, newer / f"one-{name}")
        )
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
        assert f"version: {name}" in done.output
    report = json.loads((newer / "out" / "chain_report.json").read_text())
    assert [version["name"] for version in report["versions"]] == ["new", "newer"]
    # What came out is no base.
    again = call(newer, *words[:4], "--onto", "new", "--onto", str(newer / "out" / "newer"),
                 "--out", str(newer / "more"))  # fmt: skip
    assert (again.exit_code, (newer / "more").exists()) == (4, False)
    assert "holds this patch already" in again.output


def test_of_several_bases_those_within_the_limit_are_written(newer: Path) -> None:
    limit = (drift(newer, "new") + drift(newer, "newer")) / 2
    words = ("port", "adapter", "--from", "old", "--onto", "newer", "--onto", "new", "--json")
    done = call(newer, *words, "--max-drift", str(limit), "--out", "out")
    assert done.exit_code == 4
    assert "onto newer is refused" in done.stderr
    told = json.loads(done.stdout)
    assert [(v["name"], v["portability"]["accepted"]) for v in told] == [
        ("newer", False),
        ("new", True),
    ]
    assert sorted(p.name for p in (newer / "out").iterdir()) == ["chain_report.json", "new"]
    dry = call(newer, *words, "--dry-run")
    assert (dry.exit_code, [v["folder"] for v in json.loads(dry.stdout)]) == (0, [None, None])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-drift", "0.5"], "--from"),
        (["--min-cosine", "0.5"], "--text"),
        (["--max-drift", "-1"], "max_drift"),
        (["--text", "nowhere.txt"], "--from BASE"),
        (["--text", "nowhere.txt", "--from", "old"], "cannot be read"),
        (["--onto", "new"], "Two bases are called 'new'"),
    ],
)
def test_a_limit_of_what_is_not_known_gets_a_way_out(
    folder: Path, words: list[str], says: str
) -> None:
    done = call(folder, "port", "adapter", "--onto", "new", "--out", "out", *words)
    assert (done.exit_code, says in done.output) == (2, True), done.output
    assert not (folder / "out").exists()


def test_the_lines_of_a_text_tell_how_far_inputs_moved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**shape, intermediate_size=24, vocab_size=30522)
    network = BertModel(config, add_pooling_layer=False)
    tokenizer = open_backbone("builtin:minilm").tokenizer
    for name in ("old", "new"):
        network.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            network.embeddings.word_embeddings.weight += 0.02 * torch.randn(30522, 16)
    lora = LoraConfig(target_modules=["query"], init_lora_weights=False, r=2)
    old = BertModel.from_pretrained(tmp_path / "old", add_pooling_layer=False)
    get_peft_model(old, lora).save_pretrained(tmp_path / "adapter")
    (tmp_path / "text").write_text("cough and fever\n\na fracture of the left arm\n")
    words = ("port", "adapter", "--from", "old", "--onto", "new", "--text", "text", "--dry-run")
    done = call(tmp_path, *words)
    assert done.exit_code == 0, done.output
    assert "drift of its inputs" in done.output
    rows = json.loads(call(tmp_path, *words, "--json").stdout)["activations"]
    assert [row["name"][:15] for row in rows] == ["encoder.layer.0", "encoder.layer.1"]
    assert all(0 < row["drift"] < 2 and row["cosine"] < 1 for row in rows)
    worst = min(row["cosine"] for row in rows)
    refused = call(tmp_path, *words, "--min-cosine", str((1 + worst) / 2))
    assert refused.exit_code == 4
    assert "refused: the inputs of" in refused.output
    assert call(tmp_path, *words, "--min-cosine", str(worst - 0.01)).exit_code == 0
