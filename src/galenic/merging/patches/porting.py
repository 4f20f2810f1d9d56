"""Write a new base with a patch in it: tensor by tensor, in little memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.core.files import atomic_json, plain
from galenic.merging import writing
from galenic.merging.checkpoints import Checkpoint
from galenic.merging.folders import PORTED, new_checkpoint, require_apart
from galenic.merging.patches.bases import PATCHES
from galenic.merging.patches.fitting import Fitted
from galenic.merging.patches.portability import Portability
from galenic.merging.sources import close, size_of, spans
from galenic.merging.writing import Progress, Slot, narrowed
from galenic.models.delta.entries import piece, plus


def write_ported(
    base: Checkpoint,
    fitted: Fitted,
    known: Portability,
    out: Path,
    scale: float,
    progress: Progress | None = None,
    *,
    judge: Callable[[Path], Portability] | None = None,
) -> None:
    """Write `base` with `scale` times a patch as the new folder `out`, whole or not at all.

    Sums are taken in float32 and rounded once. Tensors that the patch does not name are the base's,
    bit for bit; so are all at scale 0.

    Args:
        base: The new base.
        fitted: The patch by its names.
        known: Goes into `port_report.json`.
        out: The folder; what stands there is replaced.
        scale: Factor of the differences.
        progress: Called after every tensor.
        judge: Called with the folder before it takes its place, and gives what goes into
            `port_report.json` instead; where it raises, nothing is written.

    Raises:
        ConfigError: If `out` is the base, or no output of a merge or port.
        WeightsError: If a sum is not finite; names the tensor.
        RunError: If the disk is full.
    """
    out = out.resolve()
    require_apart(out, [base.path])
    started = time.perf_counter()
    patched = _Patched(base, fitted if scale else Fitted({}, {}), scale)
    held = json.loads(base.metadata.get(PATCHES, "[]"))
    metadata = {"format": "pt", **base.metadata}
    if scale:
        metadata[PATCHES] = json.dumps([*held, known.patch])
    with new_checkpoint(out, base.folder) as (aside, made):
        made |= writing.write(
            aside,
            patched.slots(),
            patched.stream,
            stem=base.stem,
            metadata=metadata,
            progress=progress,
        )
        if judge is not None:
            known = judge(aside)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        took = time.perf_counter() - started
        document = plain(known) | {"scale": scale, "date": now, "seconds": took}
        atomic_json(aside / PORTED, document)


class _Patched:
    """What is written, and where each entry comes from."""

    def __init__(self, base: Checkpoint, fitted: Fitted, scale: float) -> None:
        self._base, self._scale = base, scale
        self._entries, self._copied = fitted.entries, fitted.copied

    def slots(self) -> list[Slot]:
        """The tensors of the base, and after them what is new."""
        found = [Slot(name, at.dtype, at.shape) for name, at in self._base.entries.items()]
        fresh = {n: t for n, t in self._copied.items() if n not in self._base.entries}
        return found + [Slot(name, t.dtype, tuple(t.shape)) for name, t in fresh.items()]

    def stream(self, slot: Slot) -> Iterator[Tensor]:
        """The entries of one tensor, as flat pieces of its type."""
        if slot.name in self._copied:
            yield narrowed(self._copied[slot.name], slot).reshape(-1)
        else:
            yield from self._read(slot)

    def _read(self, slot: Slot) -> Iterator[Tensor]:
        source, entry = self._base.source(slot.name), self._entries.get(slot.name)
        width = size_of(source) // max(slot.shape[0], 1) if slot.shape else 1
        for start, stop in spans(size_of(source), max(width, 1)):
            found = source.flat(start, stop)
            if entry is not None:
                found = plus(found, self._scale * piece(entry, start, stop))
                if not bool(found.isfinite().all()):
                    raise WeightsError(
                        f"The tensor '{slot.name}' with the patch is not finite.",
                        expected=f"numbers that {slot.dtype} holds",
                        next_step="Use a smaller --scale, or a base without NaN.",
                    )
                yield found
            else:
                # A view of the file would be read again, after its pages were given back.
                yield found.clone()
        close(source)
