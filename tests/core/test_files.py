"""A write leaves the old file or the new one: after a full disk, a fault, a kill at any moment."""

from __future__ import annotations

import enum
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galenic.core import files
from galenic.core.errors import RunError, WeightsError
from galenic.core.files import (
    append_line,
    atomic_folder,
    atomic_json,
    atomic_write,
    plain,
    read_lines,
    sha256_file,
    sweep,
    verify_folder,
)

SIZE = 300_000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"abc", "Grüße", b"x" * (3 << 20)])
def test_write_and_overwrite(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "deep" / "a.bin"
    atomic_write(path, b"old")
    atomic_write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["write", "fsync"])
def test_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, step, refuse)
    with pytest.raises(RunError, match="disk is full") as caught:
        atomic_write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]
    assert "--resume" in caught.value.next_step


def test_real_limit_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """The system itself stops the write after 100 kB, as a full disk does."""
    script = """
import resource, signal, sys
from pathlib import Path
from galenic.core.errors import RunError
from galenic.core.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    atomic_write(Path(sys.argv[1]), b"n" * 300_000)
except RunError as error:
    sys.exit(error.exit_code)
"""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == RunError.exit_code
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_other_faults_are_not_called_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


KILLED = """
import sys, itertools
from pathlib import Path
from galenic.core.files import atomic_write, atomic_folder
root = Path(sys.argv[1])
print("ready", flush=True)
for n in itertools.count():
    byte = bytes([n % 256])
    if sys.argv[2] == "file":
        atomic_write(root / "a.bin", byte * 300_000)
    else:
        with atomic_folder(root / "a") as folder:
            for name in "xyz":
                (folder / name).write_bytes(byte * 100_000)
"""


def kill_in_the_middle(root: Path, what: str, wait: float) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), what], stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    time.sleep(wait)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()


def test_kill_during_a_file_write(tmp_path: Path) -> None:
    draw = random.Random(0)
    atomic_write(tmp_path / "a.bin", b"\0" * SIZE)
    for _ in range(12):
        kill_in_the_middle(tmp_path, "file", draw.uniform(0, 0.05))
        content = (tmp_path / "a.bin").read_bytes()
        assert len(content) == SIZE
        assert len(set(content)) == 1
    sweep(tmp_path)
    assert names(tmp_path) == ["a.bin"]


def test_kill_during_a_folder_write(tmp_path: Path) -> None:
    draw = random.Random(0)
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_bytes(b"\0" * 100_000)
    for _ in range(12):
        kill_in_the_middle(tmp_path, "folder", draw.uniform(0, 0.05))
        verify_folder(tmp_path / "a")
        contents = {path.read_bytes()[:1] for path in (tmp_path / "a").glob("[xyz]")}
        assert len(contents) == 1
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_bytes(b"new")
    assert names(tmp_path) == ["a"], "the next write sweeps up what killed ones left"


def test_sweep_leaves_a_living_writer_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
        assert sweep(tmp_path) == 0
        assert folder.is_dir()
    assert verify_folder(tmp_path / "a") == ["x"]


def test_folder_has_digests_of_every_file(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_bytes(b"1")
        (folder / "y").write_bytes(b"2")
        assert not (tmp_path / "a").exists()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["files"]["sub/x"]["sha256"] == sha256_file(tmp_path / "a" / "sub" / "x")
    assert sorted(verify_folder(tmp_path / "a")) == ["sub/x", "y"]


def test_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "a") as folder:
            (folder / name).write_text(name)
    assert names(tmp_path / "a") == ["manifest.json", "new"]
    assert names(tmp_path) == ["a"]


def test_folder_is_replaced_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    test_folder_replaces_the_old_one_whole(tmp_path)


def test_a_fault_inside_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert names(tmp_path) == ["a"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda root: flip(root / "x.bin"), "'x.bin' is damaged"),
        (lambda root: (root / "x.bin").write_bytes(b"short"), "'x.bin' is damaged"),
        (lambda root: (root / "x.bin").unlink(), "'x.bin' is missing"),
        (lambda root: (root / "manifest.json").unlink(), "not written to its end"),
        (lambda root: (root / "manifest.json").write_text("{"), "manifest.json"),
        (lambda root: (root / "manifest.json").write_text("[]"), "manifest.json"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, part: str) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x.bin").write_bytes(bytes(1000))
        (folder / "y.bin").write_bytes(bytes(1000))
    damage(tmp_path / "a")
    with pytest.raises(WeightsError, match=part):
        verify_folder(tmp_path / "a")


def test_lines_survive_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, {"step": 3, "loss": float("nan")})
    assert read_lines(path) == [{"step": 1}, {"step": 3, "loss": None}]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x1c", "\v", "\f", "\r"])
def test_a_line_holds_any_text(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "log.jsonl"
    told = [{"site": f"a{mark}b"}, {"site": "c"}]
    for one in told:
        append_line(path, one)
    assert read_lines(path) == told


class Colour(str, enum.Enum):  # noqa: UP042 - a str that is not plain
    RED = "red"


@dataclass
class Point:
    x: float
    y: Any


class Told:
    def to_dict(self) -> dict[str, Any]:
        return {"told": np.float64(2.0)}


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        ({1: (2, float("inf"))}, {"1": [2, None]}),
        (Point(1.0, Path("a/b")), {"x": 1.0, "y": "a/b"}),
        (Told(), {"told": 2.0}),
        (Colour.RED, "red"),
        ({"b", "a"}, ["a", "b"]),
        (np.float64("nan"), None),
        (True, True),
    ],
)
def test_plain(tmp_path: Path, obj: Any, expected: Any) -> None:
    assert plain(obj) == expected
    assert json.loads(atomic_json(tmp_path / "a.json", obj).read_text()) == expected


def test_plain_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        plain(object())
