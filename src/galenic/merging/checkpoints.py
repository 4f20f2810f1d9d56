"""Checkpoints as lazy mappings: safetensors files, whole or in shards, read by memory map.

Opening reads headers alone. A tensor is a view of the mapped file; pages that were read can be
given back (:meth:`Mapped.flat` does so), so that memory does not grow with the checkpoint.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.core.files import MANIFEST, sha256_file

INDEX = ".index.json"
STEMS = ("model", "adapter_model", "diffusion_pytorch_model")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# Linux sets memory aside for a map that may be written to, and refuses one of a file larger than
# memory, unless it is told not to; Python has a name for that from 3.13 on.
_PRIVATE: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)}
    if sys.platform == "linux"
    else {"access": mmap.ACCESS_COPY}
)
# Pages that were read are given back in steps of this size.
_WINDOW = 8 << 20


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        shard: Name of its file.
        dtype: As it is stored.
        shape: Of the tensor.
        start: First byte in the file.
        stop: Byte after the last.
    """

    shard: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Shard:
    """One mapped safetensors file.

    Args:
        path: Of the file.
        verify: Compare its SHA-256 with the one that is known for it, where one is.

    Raises:
        WeightsError: If it is missing, cut short or damaged; names it.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        if not path.is_file():
            raise WeightsError(f"The shard '{path.name}' is missing.", where=str(path))
        if verify:
            _verify(path)
        try:
            # The library's own checks: the header's size, gaps, overlaps, a file cut short.
            with safe_open(str(path), framework="numpy") as opened:
                self.metadata: dict[str, str] = dict(opened.metadata() or {})
            self.entries = _entries(path)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"The shard '{path.name}' is cut short or damaged: {error}.",
                where=str(path),
                expected="a complete safetensors file",
                next_step="Fetch or copy it again.",
            ) from None
        self._map: mmap.mmap | None = None

    def bytes_at(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` entries of `dtype` from byte `start`, as a flat view of the file."""
        if count == 0:
            return torch.empty(0, dtype=dtype)
        if self._map is None:
            with self.path.open("rb") as file:
                # A private map: torch wants it writable, and no write would reach the file.
                self._map = mmap.mmap(file.fileno(), 0, **_PRIVATE)
        if start % dtype.itemsize:
            raw = bytearray(self._map[start : start + count * dtype.itemsize])
            return torch.frombuffer(raw, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)

    def give_back(self, start: int, stop: int) -> None:
        """Let go of the pages of bytes [start, stop); they can be read again."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


class Mapped:
    """A tensor of a shard as a source; what was read is given back as the reading goes on."""

    def __init__(self, shard: Shard, entry: Entry) -> None:
        self._shard, self._entry = shard, entry
        self._held = entry.start

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self._entry.shape

    @property
    def dtype(self) -> torch.dtype:
        """As it is stored."""
        return self._entry.dtype

    def flat(self, start: int, stop: int) -> Tensor:
        """Entries [start, stop)."""
        size = self.dtype.itemsize
        begin = self._entry.start + start * size
        if begin < self._held:
            self._held = begin
        elif begin - self._held >= _WINDOW:
            self._shard.give_back(self._held, begin)
            self._held = begin
        return self._shard.bytes_at(begin, stop - start, self.dtype)

    def close(self) -> None:
        """Give back the rest."""
        self._shard.give_back(self._held, self._entry.stop)
        self._held = self._entry.start


class Checkpoint(Mapping[str, Tensor]):
    """A checkpoint on disk as a lazy mapping of names to tensors.

    Tensors are views of the mapped files: they cost nothing until they are read, and writing to
    one changes neither the file nor what another process sees.

    Attributes:
        path: What was opened.
        folder: Where its files lie.
        stem: `model` for `model.safetensors` or `model-00001-of-00002.safetensors`.
        metadata: Of the first shard that has some.
        label: What messages call it.
    """

    def __init__(
        self, path: Path, shards: Mapping[str, Shard], names: Mapping[str, str], stem: str
    ) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.stem = stem
        self.label = path.name
        self.shards = dict(shards)
        self.metadata = next((s.metadata for s in shards.values() if s.metadata), {})
        self.entries = {name: shards[file].entries[name] for name, file in names.items()}
        # safetensors' save_model leaves out all but one name of a tensor, and says which.
        self.aliases = {a: n for a, n in self.metadata.items() if n in self.entries}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Checkpoint:
        """Open a file, or a folder of a network or of a PEFT adapter.

        Args:
            path: A `.safetensors` file, an `.index.json`, or a folder with one of either.
            verify: Compare digests, where the folder has a manifest of them.

        Raises:
            WeightsError: If there are no safetensors, or a shard is missing, cut short or
                damaged; names it.
        """
        path = Path(path)
        if path.is_dir():
            file = _file_of(path)
        elif path.exists():
            file = path
        else:
            raise WeightsError(
                f"There is no checkpoint '{path}'.",
                expected="a folder, or a .safetensors file",
            )
        if file.name.endswith(INDEX):
            names = _index(file)
            stem = file.name.removesuffix(".safetensors" + INDEX)
        else:
            names, stem = None, file.name.removesuffix(".safetensors")
        files = sorted(set(names.values())) if names is not None else [file.name]
        shards = {name: Shard(file.parent / name, verify=verify) for name in files}
        if names is None:
            names = dict.fromkeys(shards[file.name].entries, file.name)
        for name, shard in names.items():
            if name not in shards[shard].entries:
                raise WeightsError(
                    f"The index names the tensor '{name}', and the shard '{shard}' has none.",
                    where=str(file),
                    next_step="Fetch the checkpoint again: index and shards are of two versions.",
                )
        return cls(path, shards, names, stem)

    def names(self) -> list[str]:
        """Names in the order of the index, or of the file."""
        return list(self.entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        count = math.prod(entry.shape)
        flat = self.shards[entry.shard].bytes_at(entry.start, count, entry.dtype)
        return flat.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def source(self, name: str) -> Mapped:
        """A tensor that is read piece by piece.

        Raises:
            KeyError: If there is none of that name.
        """
        entry = self.entries[name]
        return Mapped(self.shards[entry.shard], entry)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Views keep the maps alive; without any they go with this object.
        for shard in self.shards.values():
            shard._map = None


def _file_of(folder: Path) -> Path:
    for stem in STEMS:
        for name in (f"{stem}.safetensors{INDEX}", f"{stem}.safetensors"):
            if (folder / name).is_file():
                return folder / name
    indexes = sorted(folder.glob(f"*.safetensors{INDEX}"))
    found = indexes or sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if found:
        what = f"'{folder.name}' has several files of weights and no index"
        what += f": {', '.join(p.name for p in found[:5])}."
        step = "Name one of the files."
    elif pickles:
        what = f"'{folder.name}' holds pickles alone: {', '.join(pickles[:5])}."
        step = "Load it with weights_only=True and save it as safetensors."
    else:
        what, step = f"'{folder.name}' has no weights.", ""
    raise WeightsError(
        what,
        where=str(folder),
        expected=f"model.safetensors, model.safetensors{INDEX} or adapter_model.safetensors",
        next_step=step,
    )


def _index(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(
            f"The index '{path.name}' is damaged.",
            where=str(path),
            expected='{"weight_map": {"tensor": "file"}}',
        ) from None
    for file in set(names.values()):
        if Path(file).name != file:
            raise WeightsError(f"The index names a file elsewhere: '{file}'.", where=str(path))
    return names


def _entries(path: Path) -> dict[str, Entry]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    entries = {}
    for name, spec in header.items():
        if spec["dtype"] not in DTYPES:
            raise ValueError(f"the tensor '{name}' has the type {spec['dtype']}")
        start, stop = (8 + size + int(place) for place in spec["data_offsets"])
        shape = tuple(int(side) for side in spec["shape"])
        entries[name] = Entry(path.name, DTYPES[spec["dtype"]], shape, start, stop)
    # The order of the file is that of its bytes.
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[0])))


def _verify(path: Path) -> None:
    wanted = _known_digest(path)
    if wanted is not None and sha256_file(path) != wanted:
        raise WeightsError(
            f"The shard '{path.name}' is damaged: its SHA-256 is not the one that was saved.",
            where=str(path),
            expected=wanted,
            next_step="Fetch or copy it again.",
        )


def _known_digest(path: Path) -> str | None:
    """From the manifest beside it, or from its name where it lies in a cache by content."""
    name = path.resolve().name
    if len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return name
    try:
        files = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))["files"]
        return str(files[path.name]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
