"""Write a checkpoint tensor by tensor: headers first, then bytes as they come, in shards."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.core.files import atomic_json
from galenic.merging.ahead import ahead
from galenic.merging.checkpoints import CODES, INDEX

SHARD_BYTES = 5_000_000_000
# Progress: (tensors done, tensors in all, name of the one that is done).
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Slot:
    """A tensor that is to be written.

    Attributes:
        name: Of the tensor.
        dtype: Of the tensor.
        shape: Of the tensor.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan(slots: Sequence[Slot], stem: str, shard_bytes: int) -> dict[str, list[Slot]]:
    """Which tensors go to which file; a tensor larger than a shard has one of its own.

    Args:
        slots: All of them, in order.
        stem: Of the names of the files.
        shard_bytes: Most bytes of a file.
    """
    groups: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if groups[-1] and size + slot.bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(slot)
        size += slot.bytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    total = len(groups)
    return {
        f"{stem}-{number:05}-of-{total:05}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def write(
    folder: Path,
    slots: Sequence[Slot],
    stream: Callable[[Slot], Iterable[Tensor]],
    *,
    stem: str = "model",
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, str | int]]:
    """Write all `slots` into `folder`, which a caller has made to appear whole.

    Args:
        folder: Where the files go.
        slots: What is written, in order.
        stream: Gives the entries of one slot, as flat pieces of its type, which are the caller's
            from then on. It is called on several threads, for several slots at once.
        stem: Of the names of the files.
        shard_bytes: Most bytes of a file; with more than one file there is an index.
        metadata: Text of the header.
        progress: Called after every tensor.

    Returns:
        SHA-256 and bytes of each file, by name.

    Raises:
        OSError: If the disk is full, or any other fault of the file system.
    """
    # Wide types first, as safetensors orders them: every tensor is then aligned.
    files = {
        name: sorted(group, key=lambda slot: (-slot.dtype.itemsize, slot.name))
        for name, group in plan(slots, stem, shard_bytes).items()
    }
    made: dict[str, dict[str, str | int]] = {}
    done = 0
    with ahead(stream, [slot for order in files.values() for slot in order]) as streams:
        for name, order in files.items():
            digest = hashlib.sha256()
            with (folder / name).open("xb", buffering=0) as file:
                _put(header(order, metadata or {"format": "pt"}), file, digest)
                for slot in order:
                    count = 0
                    for piece in next(streams):
                        count += piece.numel()
                        _put(_bytes(piece), file, digest)
                    if count != math.prod(slot.shape):
                        raise ValueError(f"'{slot.name}' got {count} entries for {slot.shape}")
                    done += 1
                    if progress is not None:
                        progress(done, len(slots), slot.name)
                made[name] = {"sha256": digest.hexdigest(), "bytes": file.tell()}
    if len(files) > 1:
        where = {slot.name: name for name, group in files.items() for slot in group}
        total = sum(slot.bytes for slot in slots)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        atomic_json(folder / f"{stem}.safetensors{INDEX}", index)
    return made


def narrowed(piece: Tensor, slot: Slot) -> Tensor:
    """A copy of `piece` in the type of `slot`; what is infinite stays so.

    Raises:
        WeightsError: If float16 does not hold a finite number of it.
    """
    made = piece.to(slot.dtype, copy=True)
    lost = made.isinf() if slot.dtype == torch.float16 else None
    if lost is not None and bool(lost.any()) and bool((lost & piece.isfinite()).any()):
        raise WeightsError(
            f"The tensor '{slot.name}' is beyond what float16 holds.",
            next_step="dtype: bfloat16, or smaller weights.",
        )
    return made


def header(slots: Sequence[Slot], metadata: Mapping[str, str]) -> bytes:
    """The header of a file of `slots`, in order."""
    values: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for slot in slots:
        values[slot.name] = {
            "dtype": CODES[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [place, place + slot.bytes],
        }
        place += slot.bytes
    text = json.dumps(values, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(piece: Tensor) -> memoryview:
    flat = piece.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _put(data: bytes | memoryview, file: io.FileIO, digest: hashlib._Hash) -> None:
    digest.update(data)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
