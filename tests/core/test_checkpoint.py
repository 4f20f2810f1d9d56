"""Checkpoints: whole or not counted, and the damaged tensor has a name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from galenic.core import checkpoint
from galenic.core.errors import WeightsError
from galenic.core.files import atomic_folder


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    return module


def written(root: Path, step: int) -> Path:
    path = root / f"checkpoint-{step}"
    with atomic_folder(path) as folder:
        state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
        checkpoint.write_weights(folder, state, None)
    return path


def flip(path: Path, tensor: str) -> None:
    """Change one bit in the data of one tensor."""
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    start = json.loads(content[8 : 8 + size])[tensor]["data_offsets"][0]
    content[8 + size + start] ^= 1
    path.write_bytes(bytes(content))


def test_only_what_moves_is_taken_and_put_back() -> None:
    module = network()
    moving = checkpoint.Moving(module)
    taken = moving.take()
    assert set(taken) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
        "2.weight", "2.bias",
    }  # fmt: skip
    with torch.no_grad():
        for parameter in module[2].parameters():
            parameter.zero_()
    assert not torch.equal(taken["2.weight"], module[2].weight)
    moving.put(taken)
    assert torch.equal(taken["2.weight"], module[2].weight)


def test_a_frozen_tensor_counts_once_it_moved() -> None:
    module = network()
    moving = checkpoint.Moving(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    assert "0.weight" in moving.take() and "0.bias" not in moving.take()


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_what_does_not_fit_changes_nothing(fault: str) -> None:
    module = network()
    state: dict[str, Any] = checkpoint.trained(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state["1.weight"] = state["1.weight"] + 1
    if fault == "missing":
        del state["2.bias"]
    elif fault == "unknown":
        state["9.bias"] = torch.zeros(1)
    else:
        state["2.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError, match=r"9\.bias" if fault == "unknown" else r"2\.bias"):
        checkpoint.load_trained(module, state)
    for name, value in before.items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_tied_and_strided_tensors_are_written(tmp_path: Path) -> None:
    module = nn.Linear(3, 4, bias=False)
    module.register_buffer("view", torch.arange(12.0).reshape(3, 4).T[1:])
    module.register_buffer("same", module.view)
    checkpoint.write_weights(tmp_path, checkpoint.trained(module), None)
    weights, best = checkpoint.read_weights(tmp_path)
    assert best is None
    assert torch.equal(weights["view"], module.view)


def test_the_damaged_tensor_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    checkpoint.verify(path)
    flip(path / checkpoint.WEIGHTS, "b")
    with pytest.raises(WeightsError, match=r"tensor 'b' in 'checkpoint-3/model\.safetensors'"):
        checkpoint.verify(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, 3) / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        checkpoint.verify(path.parent)


def test_without_its_manifest_it_does_not_count(tmp_path: Path) -> None:
    written(tmp_path, 3)
    (written(tmp_path, 10) / "manifest.json").unlink()
    events: list[dict[str, Any]] = []
    assert checkpoint.newest_whole(tmp_path, events.append) == tmp_path / "checkpoint-3"
    assert [event["name"] for event in events] == ["checkpoint-10"]


def test_all_damaged_is_an_error_none_at_all_is_not(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    assert checkpoint.newest_whole(tmp_path, events.append) is None
    for step in (3, 10):
        flip(written(tmp_path, step) / checkpoint.WEIGHTS, "a")
    with pytest.raises(WeightsError, match=r"No checkpoint is whole.*tensor 'a'.*checkpoint-10"):
        checkpoint.newest_whole(tmp_path, events.append)
    assert len(events) == 2


def test_the_newest_by_number_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        written(tmp_path, step)
    (tmp_path / "checkpoint-notes").mkdir()
    checkpoint.rotate(tmp_path)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    assert (tmp_path / "checkpoint-notes").is_dir()


def test_digests_tell_type_and_shape_apart() -> None:
    zeros = torch.zeros(4)
    assert len({checkpoint.digest(z) for z in (zeros, zeros.reshape(2, 2), zeros.int())}) == 3
    assert checkpoint.digest(torch.tensor(1.0)) != checkpoint.digest(torch.tensor(2.0))


def test_what_is_written_is_safetensors(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    with safe_open(path / checkpoint.WEIGHTS, "pt") as file:
        assert set(file.keys()) == {"a", "b"}
