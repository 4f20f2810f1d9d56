"""Checkpoints: lazy reading, shards, faults that name the file, streaming writes."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from galenic.core.errors import RunError, WeightsError
from galenic.core.files import atomic_folder, verify_folder
from galenic.merging import writing
from galenic.merging.checkpoints import DTYPES, Checkpoint
from galenic.merging.writing import Slot


def state(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(5, 7, generator=draw),
        "b.weight": torch.randn(3, 2, 2, generator=draw).bfloat16(),
        "b.bias": torch.randn(3, generator=draw).half(),
        "scale": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "steps": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
        "wide": torch.randn(2, 2, generator=draw, dtype=torch.float64),
    }


def same(first: dict[str, Tensor] | Checkpoint, second: dict[str, Tensor] | Checkpoint) -> bool:
    return set(first) == set(second) and all(
        first[n].dtype == second[n].dtype
        and first[n].shape == second[n].shape
        and torch.equal(first[n], second[n])
        for n in first
    )


def write(folder: Path, tensors: dict[str, Tensor], shard_bytes: int = 1 << 30) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    slots = [Slot(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]
    writing.write(
        folder, slots, lambda slot: [tensors[slot.name].reshape(-1)], shard_bytes=shard_bytes
    )


@pytest.mark.parametrize("shard_bytes", [1 << 30, 100, 1])
def test_what_is_written_is_read_by_the_library_and_by_the_reader(
    tmp_path: Path, shard_bytes: int
) -> None:
    tensors = state()
    write(tmp_path, tensors, shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes < 1000)
    by_library: dict[str, Tensor] = {}
    for file in files:
        by_library |= load_file(file)
    assert same(by_library, tensors)
    assert same(Checkpoint.open(tmp_path), tensors)
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


def test_a_file_of_the_library_is_read_in_every_type(tmp_path: Path) -> None:
    tensors = {}
    for code, dtype in DTYPES.items():
        tensors[code] = torch.arange(6).reshape(2, 3).to(dtype)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"who": "me"})
    found = Checkpoint.open(tmp_path / "x.safetensors")
    assert found.metadata == {"who": "me"}
    for code, value in tensors.items():
        assert found[code].dtype == value.dtype
        assert torch.equal(found[code].view(torch.uint8), value.view(torch.uint8))


def test_pieces_of_a_source_are_the_tensor_in_any_order(tmp_path: Path) -> None:
    tensors = {"x": torch.randn(40, 11).bfloat16()}
    write(tmp_path, tensors)
    source = Checkpoint.open(tmp_path).source("x")
    flat = tensors["x"].reshape(-1)
    for start, stop in [(0, 440), (3, 9), (200, 440), (0, 1), (5, 5)]:
        assert torch.equal(source.flat(start, stop), flat[start:stop])


def test_pages_that_were_given_back_are_read_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("galenic.merging.checkpoints._WINDOW", 4096)
    tensors = {"x": torch.randn(1 << 14)}
    write(tmp_path, tensors)
    source = Checkpoint.open(tmp_path).source("x")
    for _ in range(2):
        pieces = [source.flat(at, at + 1024).clone() for at in range(0, 1 << 14, 1024)]
        assert torch.equal(torch.cat(pieces), tensors["x"])
    source.close()
    assert torch.equal(source.flat(0, 10), tensors["x"][:10])


def test_writing_to_a_view_leaves_the_file(tmp_path: Path) -> None:
    tensors = state()
    write(tmp_path, tensors)
    before = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).digest()
    found = Checkpoint.open(tmp_path)["a.weight"]
    found.zero_()
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).digest() == before


@pytest.mark.skipif(sys.platform != "linux", reason="sizes memory as Linux tells it")
def test_a_shard_may_be_larger_than_memory(tmp_path: Path) -> None:
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    held = sum(int(told[key].split()[0]) * 1024 for key in ("MemTotal", "SwapTotal"))
    slot = Slot("w", torch.bfloat16, (held // 1000, 1000))
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(writing.header([slot], {"format": "pt"}))
        try:
            # Zeros that take no room.
            file.truncate(file.tell() + slot.bytes)
        except OSError:
            pytest.skip("this file system holds no file of that size")
    with Checkpoint.open(path) as opened:
        last = opened.source("w").flat(held - held % 1000 - 8, held - held % 1000)
        assert last.tolist() == [0.0] * 8


def test_an_adapter_folder_and_a_lone_file_of_any_name_open(tmp_path: Path) -> None:
    for name in ("adapter_model", "net"):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"x": torch.ones(2)}, folder / f"{name}.safetensors")
        opened = Checkpoint.open(folder)
        assert opened.stem == name
        assert torch.equal(opened["x"], torch.ones(2))


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_shard_that_was_cut_short_is_named(tmp_path: Path, kept: int) -> None:
    write(tmp_path, state(), 100)
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=victim.name):
        Checkpoint.open(tmp_path)


def test_a_flipped_bit_is_found_by_digest_and_the_shard_named(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "net") as aside:
        write(aside, state(), 100)
    victim = sorted((tmp_path / "net").glob("*.safetensors"))[-1]
    data = bytearray(victim.read_bytes())
    data[-1] ^= 4
    victim.write_bytes(data)
    with pytest.raises(WeightsError, match=f"{victim.name}.*SHA-256"):
        Checkpoint.open(tmp_path / "net")
    Checkpoint.open(tmp_path / "net", verify=False)


def test_a_file_in_a_cache_by_content_is_checked_by_its_name(tmp_path: Path) -> None:
    save_file({"x": torch.ones(9)}, tmp_path / "blob")
    data = bytearray((tmp_path / "blob").read_bytes())
    name = hashlib.sha256(data).hexdigest()
    (tmp_path / name).write_bytes(data)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "model.safetensors").symlink_to(tmp_path / name)
    assert torch.equal(Checkpoint.open(tmp_path / "net")["x"], torch.ones(9))
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError, match="SHA-256"):
        Checkpoint.open(tmp_path / "net")


def test_faults_of_an_index_are_named(tmp_path: Path) -> None:
    write(tmp_path, state(), 100)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    shard = next(iter(good["weight_map"].values()))
    for change, match in [
        ({"ghost": shard}, "ghost"),
        ({"a.weight": "gone.safetensors"}, "gone.safetensors.*missing"),
        ({"a.weight": "../up.safetensors"}, "elsewhere"),
    ]:
        index.write_text(json.dumps({"weight_map": good["weight_map"] | change}))
        with pytest.raises(WeightsError, match=match):
            Checkpoint.open(tmp_path)
    index.write_text("{")
    with pytest.raises(WeightsError, match=r"index.json.*damaged"):
        Checkpoint.open(tmp_path)


def test_a_folder_without_safetensors_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="pickles"):
        Checkpoint.open(tmp_path)
    with pytest.raises(WeightsError, match="no checkpoint"):
        Checkpoint.open(tmp_path / "nothing")


def test_digests_of_the_writer_are_those_of_the_files(tmp_path: Path) -> None:
    tensors = state()
    slots = [Slot(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]
    made = writing.write(tmp_path, slots, lambda s: [tensors[s.name]], shard_bytes=100)
    for name, entry in made.items():
        data = (tmp_path / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_a_stream_of_too_few_entries_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'x' got 3 entries"):
        writing.write(tmp_path, [Slot("x", torch.float32, (4,))], lambda _: [torch.ones(3)])


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "net"
    with atomic_folder(target) as aside:
        write(aside, {"x": torch.ones(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(RunError, match="disk is full"), atomic_folder(target) as aside:
            write(aside, {"x": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(Checkpoint.open(target)["x"], torch.ones(3))
    verify_folder(target)
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(1, 200),
)
@settings(max_examples=30, deadline=None)
def test_every_tensor_is_in_one_shard_and_no_shard_is_too_full(sides, limit) -> None:
    slots = [Slot(str(i), torch.float32, side) for i, side in enumerate(sides)]
    files = writing.plan(slots, "model", limit)
    assert [s for group in files.values() for s in group] == slots
    for group in files.values():
        assert len(group) == 1 or sum(s.bytes for s in group) <= limit


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    write(tmp_path, state())
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    for name, entry in Checkpoint.open(tmp_path).entries.items():
        assert entry.start % entry.dtype.itemsize == 0, name
