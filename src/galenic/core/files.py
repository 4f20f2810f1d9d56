"""Files that are whole or not there: atomic writes, digests, JSON Lines.

A write goes to a hidden neighbour, is synced, and is renamed over the target, so that a kill
or a full disk at any moment leaves the old file or the new one. The neighbour is locked while
its writer lives; :func:`sweep` removes those whose writer is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from galenic.core.errors import RunError, WeightsError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; leftovers are then not swept
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK = 1 << 20
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def atomic_write(path: Path, content: bytes | str) -> Path:
    """Write `content` to `path`, whole or not at all.

    Args:
        path: Target; its folder is made where it is missing.
        content: Bytes, or text that is written as UTF-8.

    Returns:
        `path`.

    Raises:
        RunError: If the disk is full; the old file is left as it was.
        OSError: For any other fault of the file system.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    with _disk_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = _open_aside(path)
        try:
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
                aside.replace(path)
            finally:
                os.close(descriptor)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return path


def atomic_json(path: Path, obj: Any) -> Path:
    """Write `obj` as strict JSON; see :func:`plain` for what is converted.

    Raises:
        RunError: As :func:`atomic_write`.
    """
    text = json.dumps(plain(obj), indent=1, ensure_ascii=False, allow_nan=False)
    return atomic_write(path, text + "\n")


def append_line(path: Path, obj: Any) -> None:
    """Append `obj` to a JSON Lines file in one write.

    A torn last line, left by a kill, is closed first, so that only that line is lost.

    Raises:
        RunError: If the disk is full.
    """
    line = json.dumps(plain(obj), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with _disk_full(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size:
                os.lseek(descriptor, size - 1, os.SEEK_SET)
                if os.read(descriptor, 1) != b"\n":
                    line = b"\n" + line
            _write_all(descriptor, line)
        finally:
            os.close(descriptor)


def read_lines(path: Path) -> list[Any]:
    """The objects of a JSON Lines file; torn lines are left out."""
    found = []
    # JSON leaves U+2028 and its like as they are: they end a line of text, but none of this file.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


@contextlib.contextmanager
def atomic_folder(path: Path, *, digests: bool = True) -> Iterator[Path]:
    """A folder that appears whole: built aside, synced, then renamed to `path`.

    An existing `path` is replaced in one step where the system can exchange two names.

    Args:
        path: Where the folder will stand.
        digests: Write `manifest.json` with the SHA-256 of every file, last;
            :func:`verify_folder` reads it.

    Yields:
        The folder to fill.

    Raises:
        RunError: If the disk is full; what stood at `path` is left as it was.
    """
    path = Path(path)
    with _disk_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        descriptor, aside = _make_aside(path)
        try:
            try:
                yield aside
                files = sorted(file for file in aside.rglob("*") if file.is_file())
                if digests:
                    atomic_write(aside / MANIFEST, _manifest(aside, files))
                for file in files:
                    _sync(file)
                for folder in [*(f for f in aside.rglob("*") if f.is_dir()), aside]:
                    _sync_folder(folder)
                _swap(aside, path)
            finally:
                os.close(descriptor)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _sync_folder(path.parent)
        # After an exchange the old folder lies under the name of the new one.
        shutil.rmtree(aside, ignore_errors=True)


def verify_folder(path: Path) -> list[str]:
    """Check a folder against its manifest of digests.

    Returns:
        The names of its files.

    Raises:
        WeightsError: Naming the first file that is missing or damaged.
    """
    try:
        entries = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise WeightsError(
            f"'{path.name}' has no {MANIFEST}: it was not written to its end, or not by galenic.",
            where=str(path),
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"The {MANIFEST} of '{path.name}' is damaged.", where=str(path)
        ) from error
    for name, entry in entries.items():
        file = path / name
        if not file.is_file():
            raise WeightsError(f"The file '{name}' is missing.", where=str(file))
        if file.stat().st_size != entry["bytes"] or sha256_file(file) != entry["sha256"]:
            raise WeightsError(
                f"The file '{name}' is damaged: its digest is not the one that was saved.",
                where=str(file),
                next_step="Use an older checkpoint, or run again.",
            )
    return list(entries)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path, name: str = "") -> int:
    """Remove what killed writers left in `folder`; writers that live are left alone.

    Args:
        folder: Where to look, not deeper.
        name: Only leftovers of this target; all of them by default.

    Returns:
        How many were removed.
    """
    if fcntl is None or not folder.is_dir():
        return 0
    removed = 0
    with os.scandir(folder) as entries:
        left = [e.name for e in entries if e.name.startswith(f".{name}") and _is_aside(e.name)]
    for entry in left:
        path = folder / entry
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed += 1
            finally:
                os.close(descriptor)
    return removed


def plain(obj: Any) -> Any:
    """`obj` in JSON's own types.

    Dataclasses and objects with `to_dict` become mappings, NumPy and torch values become
    numbers and lists, paths become text, and NaN and infinities become null.

    Raises:
        TypeError: For anything else.
    """
    if obj is None or isinstance(obj, bool | int | str):
        return obj if type(obj) in (type(None), bool, int, str) else _basic(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple | set | frozenset):
        return [
            plain(value) for value in (sorted(obj) if isinstance(obj, set | frozenset) else obj)
        ]
    if isinstance(obj, Path):
        return str(obj)
    if hasattr(obj, "to_dict"):
        return plain(obj.to_dict())
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if hasattr(obj, "model_dump"):
        return plain(obj.model_dump(mode="json"))
    if hasattr(obj, "tolist"):
        return plain(obj.tolist())
    if hasattr(obj, "isoformat"):
        return obj.isoformat()
    raise TypeError(f"{type(obj).__name__} has no JSON form")


def _basic(obj: Any) -> Any:
    # Enumerations and subclasses of str and int.
    for kind in (str, int):
        if isinstance(obj, kind):
            return kind(getattr(obj, "value", obj))
    return obj


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _is_aside(name: str) -> bool:
    parts = name.split(".")
    return len(parts) >= 4 and parts[-1] == "tmp" and len(parts[-2]) == 32


def _open_aside(path: Path) -> tuple[int, Path]:
    while True:
        aside = _aside(path)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if _claim(descriptor, aside):
            return descriptor, aside


def _make_aside(path: Path) -> tuple[int, Path]:
    while True:
        aside = _aside(path)
        aside.mkdir()
        descriptor = os.open(aside, os.O_RDONLY)
        if _claim(descriptor, aside):
            return descriptor, aside


def _claim(descriptor: int, aside: Path) -> bool:
    """Lock a fresh neighbour; false if a sweep took it for a leftover just before."""
    if fcntl is None:
        return True
    # Some network file systems have no locks; then there is only nothing to sweep by.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if aside.exists():
        return True
    os.close(descriptor)
    return False


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:_CHUNK]) :]


def _manifest(root: Path, files: list[Path]) -> str:
    entries = {
        file.relative_to(root).as_posix(): {
            "sha256": sha256_file(file),
            "bytes": file.stat().st_size,
        }
        for file in files
        if file != root / MANIFEST
    }
    return json.dumps({"files": entries}, indent=1)


def _swap(new: Path, old: Path) -> None:
    """Give `new` the name of `old`; an existing `old` then lies under the name of `new`."""
    if not old.exists():
        try:
            new.rename(old)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    if _exchange(new, old):
        return
    # No exchange here: two renames, with a moment in which only the neighbours exist.
    spare = _aside(old)
    old.rename(spare)
    new.rename(old)
    spare.rename(new)


def _exchange(a: Path, b: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(a.absolute()), os.fsencode(b.absolute()))
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    # Not every file system lets a folder be synced; the rename itself has happened by then.
    with contextlib.suppress(OSError):
        _sync(path)


@contextlib.contextmanager
def _disk_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise RunError(
            f"The disk is full: '{path.name}' was not written; what was there before is whole.",
            where=str(path.parent),
            expected="enough free space, and a quota that allows it",
            next_step="Free some space, then go on with --resume, or choose another --out.",
        ) from error
