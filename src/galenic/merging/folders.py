"""Folders of checkpoints: found by name, and written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from galenic.core.errors import ConfigError, RunError, WeightsError
from galenic.core.files import MANIFEST, atomic_folder, atomic_json, sha256_file
from galenic.merging.compare import excluded

# What makes weights a network that opens; other files of the folder may be anybody's.
_COPIED = (
    "config.json", "*_config.json", "tokenizer.json", "tokenizer.model", "spiece.model",
    "sentencepiece*.model", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "chat_template.*", "configuration_*.py", "modeling_*.py", "tokenization_*.py",
    "processing_*.py", "image_processing_*.py",
)  # fmt: skip
# Of a merge and of a port: a folder with one is an output, and may be replaced by another.
REPORTS = MERGED, PORTED = "merge_report.json", "port_report.json"
# SHA-256 and size of a file, by its name.
Digests = dict[str, dict[str, str | int]]


@contextmanager
def new_checkpoint(
    out: Path, base: Path, dtype: str | None = None
) -> Iterator[tuple[Path, Digests]]:
    """A folder `out` for weights like those of `base`; what stands there is replaced at the end.

    Args:
        out: The folder.
        base: Folder whose config, tokenizer and code are copied.
        dtype: What the copied config says of the type; None leaves it.

    Yields:
        The folder to fill, and digests to be added to it for files that were hashed already.

    Raises:
        RunError: If the disk is full.
    """
    made: Digests = {}
    with one_thread(), _full_disk(), atomic_folder(out, digests=False) as aside:
        _copy_files(base, aside, dtype)
        yield aside, made
        _manifest(aside, made)


@contextmanager
def one_thread() -> Iterator[None]:
    """No team of threads for a piece: it is too small, and on a busy machine they wait in turn.

    Several tensors are made at once instead, each on a thread of its own.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_apart(out: Path, places: Sequence[Path]) -> None:
    """Check that writing `out` replaces nothing but an earlier output.

    Raises:
        ConfigError: If it is one of `places`, or holds one, or holds what was not written here.
    """
    target = out.resolve()
    for place in places:
        source = place.resolve()
        if target == source or target in source.parents:
            raise ConfigError(
                f"'{out}' is, or holds, a model that is merged, or the recipe.",
                expected="a folder of its own",
            )
    ours = not target.exists() or (
        target.is_dir()
        and (not any(target.iterdir()) or any((target / name).is_file() for name in REPORTS))
    )
    if not ours:
        raise ConfigError(
            f"'{out}' holds what no merge or port has written, and would be replaced.",
            expected="a new or empty folder, or an earlier output",
            next_step="Name another folder.",
        )


def locate(name: str, beside: Path) -> Path:
    """The checkpoint that a recipe names: a path from here or from the recipe, or an id in the cache.

    Raises:
        WeightsError: If there is none.
    """
    for place in (Path(name).expanduser(), beside / name):
        if place.exists():
            return place
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            pass
    raise WeightsError(
        f"There is no checkpoint '{name}'.",
        expected="a folder, a .safetensors file, or an id in the local cache",
        next_step="Paths are taken from here, or from the folder of the recipe.",
    )


@contextmanager
def _full_disk() -> Iterator[None]:
    """A merge cannot be resumed: it is begun again."""
    try:
        yield
    except RunError as error:
        step = "Free some space, or choose another folder, and merge again."
        raise RunError(
            error.found, where=error.where, expected=error.expected, next_step=step
        ) from None


def _copy_files(source: Path, target: Path, dtype: str | None) -> None:
    """Config, tokenizer, processor and the code that a config may name."""
    for path in sorted(source.iterdir()):
        if excluded(path.name, _COPIED) and path.is_file():
            shutil.copyfile(path, target / path.name)
    config = target / "config.json"
    if dtype is None or not config.is_file():
        return
    values = json.loads(config.read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):
        if key in values:
            values[key] = dtype
    atomic_json(config, values)


def _manifest(folder: Path, made: Mapping[str, Mapping[str, str | int]]) -> None:
    """Digests of all files; those of the shards were taken as they were written."""
    entries: dict[str, Mapping[str, str | int]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        entries[name] = made.get(name) or {
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
    atomic_json(folder / MANIFEST, {"files": entries})
