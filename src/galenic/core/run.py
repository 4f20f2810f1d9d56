"""The run folder: what went in, what came out, and whether it is finished."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from galenic.core.config import dump_yaml, load_yaml
from galenic.core.errors import GalenicError, RunError
from galenic.core.figure import Figure
from galenic.core.files import append_line, atomic_json, atomic_write, fcntl, read_lines, sweep
from galenic.core.provenance import anonymous, git_commit, system, versions

if TYPE_CHECKING:
    import pandas as pd

_WAIT_SECONDS = 600.0
# Tasks that are commands of their own; all others are carried out by `galenic run`.
OWN_VERBS = ("curve", "sites")


class Run:
    """A run folder.

    Under torchrun every process holds the same folder, and only the first one writes to it.

    Attributes:
        path: The folder.
        resumed: Whether this process goes on with a run that was cut off.
        main: Whether this process is the one that writes.
    """

    # Folders that this process has taken up from the first process of its launch.
    _joined: ClassVar[set[Path]] = set()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resumed = False
        self.main = _rank() == 0
        self._lock: int | None = None

    @classmethod
    def create(cls, root: Path, name: str, *, path: Path | None = None) -> Run:
        """Make a new folder: `root/name-0001`, `root/name-0002`, ..., or `path` itself.

        Raises:
            RunError: If `path` exists, or the folder cannot be made.
        """
        target = Path(path) if path is not None else None
        if _rank() != 0:
            joined = _await_folder(Path(root), name, target, cls._joined)
            cls._joined.add(joined)
            (joined / f".joined-{_rank()}").touch()
            return cls(joined)
        try:
            if target is None:
                run = cls(_next_folder(Path(root), name))
                run._announce(Path(root), name)
                return run
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir()
        except FileExistsError as error:
            place = target if target is not None else Path(error.filename or root)
            raise RunError(
                f"The folder '{place.name}' exists already; nothing in it was changed.",
                where=str(place),
                expected="a folder that does not exist yet",
                next_step="Choose another --name, or go on with that run: --resume FOLDER.",
            ) from None
        except OSError as error:
            raise RunError(
                f"The run folder cannot be made: {error.strerror}.",
                where=str(target or root),
                next_step="Name another place with --out.",
            ) from None
        return cls(target)

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run in the folder `path`.

        Raises:
            RunError: If it is no run folder.
        """
        path = Path(path)
        if not (path / "status.json").is_file():
            fault = "is not a run folder" if path.is_dir() else "does not exist"
            raise RunError(
                f"'{path.name}' {fault}.",
                where=str(path),
                expected="a folder with config.yaml, provenance.json and status.json",
            )
        return cls(path)

    # Its life --------------------------------------------------------------------------

    def start(
        self,
        config: Mapping[str, Any],
        *,
        recipe: str = "",
        title: str = "",
        about: Mapping[str, Any] | None = None,
        task: str = "",
        command: Sequence[str] = (),
        seed: int | None = None,
        data: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what goes in, and say that it is running.

        Args:
            config: The whole resolved config.
            recipe: Name of the recipe.
            title: Its name in words.
            about: What its method is: paper, summary and the like.
            task: Name of the task.
            command: The command line; paths in it lose the user's home and name.
            seed: The seed.
            data: Fingerprint, name and counts of the cohort; may be added later.
            weights: Name and fingerprint of the backbone; may be added later.
        """
        self._take()
        self.write_text("config.yaml", dump_yaml(config))
        self.write_json(
            "provenance.json",
            {
                "recipe": recipe,
                "title": title,
                "about": about or {},
                "task": task,
                "command": [anonymous(part) for part in command],
                "seed": seed,
                "started": _now(),
                "versions": versions(),
                **system(),
                "git": git_commit(),
                "data": data or {},
                "weights": weights or {},
            },
        )
        self._status("running")

    def resume(self) -> None:
        """Go on with a run that was cut off.

        Raises:
            RunError: If it is finished, or another process is at it.
        """
        if self.state == "finished":
            raise RunError(
                f"'{self.path.name}' is finished; there is nothing to resume.",
                where=str(self.path),
                next_step=f"galenic report {self.path}",
            )
        self._take()
        if self.main:
            sweep(self.path)
        self.resumed = True
        self._status("running")

    def finish(self) -> None:
        """Say that the run is finished."""
        if not self.main:
            self._await_end()
            return
        self._await_others()
        self._status("finished")
        self._release()

    def fail(self, message: str) -> None:
        """Say that the run failed, and why; `message` must hold no patient identifier."""
        self._status("failed", message=message)
        self._release()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Finish at the end; where it ends in a fault, say so, and why."""
        try:
            yield
        except GalenicError as error:
            self.fail(error.found)
            raise
        except KeyboardInterrupt:
            self.fail("interrupted")
            raise
        except Exception as error:
            # Its kind alone: its words may hold what stands in a cell.
            self.fail(type(error).__name__)
            raise
        self.finish()

    @property
    def state(self) -> str:
        """`running`, `finished` or `failed`."""
        return str(self.read_json("status.json")["state"])

    # What it holds ---------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return load_yaml(self.path / "config.yaml")

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, command, seed and fingerprints."""
        return dict(self.read_json("provenance.json"))

    @property
    def metrics(self) -> dict[str, Figure]:
        """The metrics on the test part, by name."""
        return {
            name: Figure.of(values)
            for name, values in self.read_json("metrics.json")["test"].items()
        }

    def update_provenance(self, **parts: Mapping[str, Any]) -> None:
        """Add to `provenance.json`: mappings are merged, key by key."""
        if not self.main:
            return
        found = self.provenance
        for key, part in parts.items():
            found[key] = {**(found.get(key) or {}), **part}
        self.write_json("provenance.json", found)

    def write_json(self, name: str, obj: Any) -> None:
        """Write a JSON file, atomically; NaN becomes null."""
        if self.main:
            atomic_json(self.path / name, obj)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, atomically."""
        if self.main:
            atomic_write(self.path / name, text)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file of any kind, atomically."""
        if self.main:
            atomic_write(self.path / name, content)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as Parquet, atomically, without its index."""
        import io

        if self.main:
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False)
            atomic_write(self.path / name, buffer.getvalue())

    def _verb(self) -> str:
        """The command that this run goes on with."""
        try:
            task = json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))["task"]
        except (OSError, ValueError, KeyError):
            return "run"
        return task if task in OWN_VERBS else "run"

    def read_json(self, name: str) -> Any:
        """What a JSON file of the run holds.

        Raises:
            RunError: If it is not there or broken.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"'{self.path.name}' has no {name}: the run was not finished.",
                where=str(self.path),
                next_step=f"galenic {self._verb()} --resume {self.path}",
            ) from None
        except (OSError, ValueError) as error:
            raise RunError(f"{name} cannot be read: {error}", where=str(self.path)) from None

    def log(self, event: Mapping[str, Any]) -> None:
        """Append an event to `log.jsonl`, with the time."""
        if self.main:
            append_line(self.path / "log.jsonl", {"time": _now(), **event})

    def events(self) -> list[dict[str, Any]]:
        """The events of `log.jsonl`."""
        path = self.path / "log.jsonl"
        return read_lines(path) if path.is_file() else []

    # Inside ----------------------------------------------------------------------------

    def _status(self, state: str, **more: Any) -> None:
        self.write_json("status.json", {"state": state, "updated": _now(), **more})

    def _take(self) -> None:
        """Lock the folder, so that no second process resumes what is still running."""
        if fcntl is None or not self.main or self._lock is not None:
            return
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RunError(
                f"'{self.path.name}' is still being written by another process.",
                where=str(self.path),
                next_step="Wait for it, or stop it first.",
            ) from None
        except OSError:
            pass  # Some network file systems have no locks.
        self._lock = descriptor

    def _release(self) -> None:
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _announce(self, root: Path, name: str) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            for old in root.glob(".launch-*"):
                if old.stat().st_mtime < time.time() - _WAIT_SECONDS:
                    old.unlink(missing_ok=True)
            atomic_write(_notice(root, name), str(self.path.absolute()))

    def _await_others(self) -> None:
        """Do not go on to the next run before every process has found this one."""
        others = int(os.environ.get("WORLD_SIZE", "1")) - 1
        for _ in _patiently(self.path):
            found = list(self.path.glob(".joined-*"))
            if len(found) >= others:
                for path in found:
                    path.unlink()
                return

    def _await_end(self) -> None:
        for _ in _patiently(self.path):
            if self.state != "running":
                return


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _next_folder(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(re.escape(name) + r"-(\d{4,})")
    taken = [int(m[1]) for p in root.iterdir() if (m := pattern.fullmatch(p.name))]
    number = max(taken, default=0)
    while True:
        number += 1
        path = root / f"{name}-{number:04d}"
        # mkdir is the one step that only one of several processes can win.
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def _rank() -> int:
    return int(os.environ.get("RANK", "0") or "0")


def _notice(root: Path, name: str) -> Path:
    """Where the first process of a launch tells the others which folder it made."""
    told = [os.environ.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "MASTER_PORT")]
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        # On one machine all have one parent, which tells this launch from the one before.
        told.append(str(os.getppid()))
    return root / f".launch-{re.sub(r'[^A-Za-z0-9-]', '', '-'.join(told))}-{name}"


def _await_folder(root: Path, name: str, target: Path | None, joined: set[Path]) -> Path:
    notice = _notice(root, name)
    for _ in _patiently(root):
        if target is not None and (target / "status.json").is_file():
            return target
        with contextlib.suppress(OSError):
            fresh = notice.stat().st_mtime > time.time() - _WAIT_SECONDS
            path = Path(notice.read_text(encoding="utf-8"))
            begun = fresh and path not in joined and (path / "status.json").is_file()
            if target is None and begun:
                return path
    raise AssertionError("unreachable")


def _patiently(place: Path) -> Any:
    until = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < until:
        yield None
        time.sleep(0.05)
    raise RunError("The first process of this launch did not get on.", where=str(place))
