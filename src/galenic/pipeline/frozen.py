"""Frozen work once: run the frozen part of a backbone over a cohort, and keep what it gave.

Two things are kept, both by content (weights, input, place in the network): the pooled feature
of the whole backbone, for arms that freeze all of it, and the hidden state behind the last
frozen block, for arms that tune only what follows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from galenic.core.arraybank import ArrayBank
from galenic.core.files import atomic_json
from galenic.core.progress import track
from galenic.models.backbone import Backbone
from galenic.models.prefix import capture, place, reader
from galenic.pipeline.inputs import Collate, Example, Inputs
from galenic.pipeline.tokens import states_of

Array = np.ndarray[Any, np.dtype[Any]]
# Samples between two writes: what a kill can cost, and how much waits in memory.
SEGMENT = 1024
# In a bank of the states of several blocks: which columns belong to which block.
STATES = "states.json"
POOLED = "pooled"
# One array a sample.
Outputs = list[Array]


class Keyed(Protocol):
    """Examples that are known by their content; see :class:`~galenic.pipeline.inputs.Inputs`."""

    @property
    def lengths(self) -> Array | None: ...

    def __getitem__(self, row: int, /) -> Example: ...

    def keys(self, rows: Sequence[int], /) -> list[str]: ...


class Packs(Protocol):
    """An encoder that makes one array of each sample.

    Attributes:
        backbone: Whose weights its arrays depend on.
        place: Name of what it gives: the same name, the same arrays.
    """

    backbone: Backbone
    place: str

    def pack(self, inputs: dict[str, Tensor], /) -> list[Array]: ...


class FrozenCache:
    """The store of frozen outputs under one folder.

    Args:
        folder: Root of the banks; content keys make it safe to share between runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pooled(
        self, backbone: Backbone, inputs: Inputs, rows: Sequence[int], batch_size: int = 64
    ) -> Array:
        """Pooled features [len(rows), width] of the frozen backbone."""

        def run(batch: dict[str, Tensor]) -> list[Outputs]:
            return [list(backbone(**batch).pooled.float().cpu().numpy())]

        bank, keys = self._fill(backbone, inputs, rows, [POOLED], run, batch_size)
        return np.stack([bank[key] for key in keys])

    def hidden(
        self,
        backbone: Backbone,
        inputs: Inputs,
        rows: Sequence[int],
        block: int,
        batch_size: int = 64,
    ) -> list[Array]:
        """Hidden states behind the first `block` blocks, one array a row, without padding.

        With a side network around the backbone: all states that it reads. The pass that computes
        them serves other arms too: it keeps pooled features of tokens, and one of its states is
        not computed again.
        """
        side = reader(backbone.network)
        keys = inputs.keys(rows)
        if side is None and (found := self._of_states(backbone, keys, block)) is not None:
            return found

        def run(batch: dict[str, Tensor]) -> list[Outputs]:
            mask = batch.get("attention_mask")
            if side is None:
                return [unpadded(capture(backbone, block, batch), mask)]
            states, tokens = side.capture(lambda: backbone(**batch))
            found = [unpadded(states, mask)]
            if tokens is not None:
                found.append(list(backbone.pool_tokens(tokens, mask).float().cpu().numpy()))
            return found

        places = [place(backbone, block)] + ([POOLED] if side is not None else [])
        bank, _ = self._fill(backbone, inputs, rows, places, run, batch_size, keys)
        if side is not None and side.columns:
            told = {"network": _network(backbone), "columns": side.columns}
            atomic_json(bank.folder / STATES, told)
        return [bank[key] for key in keys]

    def _of_states(self, backbone: Backbone, keys: Sequence[str], block: int) -> list[Array] | None:
        """The state behind one block, from a bank of several that has it for every key."""
        for path in sorted(self.folder.glob(f"*/{STATES}")):
            told = json.loads(path.read_text(encoding="utf-8"))
            columns = told["columns"].get(str(block))
            if told.get("network") != _network(backbone) or columns is None:
                continue
            bank = ArrayBank(path.parent)
            if all(key in bank for key in keys):
                return [bank[key][..., columns[0] : columns[1]] for key in keys]
        return None

    def behind(
        self, backbone: Backbone, inputs: Inputs, rows: Sequence[int], labels: Array, block: int
    ) -> Rows:
        """Rows whose first `block` blocks are computed ahead.

        A side network reads nothing but states, so that no sample is opened again for it; of a
        text the tokens stay, which are in memory and hold the mask.
        """
        hidden = self.hidden(backbone, inputs, [int(row) for row in rows], block)
        needed = reader(backbone.network) is None or inputs.lengths is not None
        return Rows(rows, labels, inputs=inputs if needed else None, ahead={"hidden": hidden})

    def tokens(
        self, backbone: Backbone, inputs: Inputs, rows: Sequence[int], batch_size: int = 64
    ) -> list[Array]:
        """Last states [n, D] of the frozen backbone, one array a row, without padding."""

        def run(batch: dict[str, Tensor]) -> list[Outputs]:
            return [unpadded(*states_of(backbone, batch))]

        bank, keys = self._fill(backbone, inputs, rows, ["tokens"], run, batch_size)
        return [bank[key] for key in keys]

    def packed(
        self, encoder: Packs, inputs: Keyed, rows: Sequence[int], batch_size: int = 16
    ) -> list[Array]:
        """What an encoder on the frozen backbone makes, one array [all values] a row."""

        def run(batch: dict[str, Tensor]) -> list[Outputs]:
            return [encoder.pack(batch)]

        bank, keys = self._fill(encoder.backbone, inputs, rows, [encoder.place], run, batch_size)
        return [bank[key] for key in keys]

    def _fill(
        self,
        backbone: Backbone,
        inputs: Keyed,
        rows: Sequence[int],
        places: Sequence[str],
        run: Callable[[dict[str, Tensor]], list[Outputs]],
        batch_size: int,
        keys: list[str] | None = None,
    ) -> tuple[ArrayBank, list[str]]:
        """The bank of the first place, with every row in it, and the keys of the rows.

        Args:
            backbone: That is run where a row is missing.
            inputs: Of the rows.
            rows: Which.
            places: Names of what `run` gives, the one that is asked for first.
            run: Arrays of a batch, for each place or for the first ones.
            batch_size: Of a pass.
            keys: Of the rows, where they are known.
        """
        banks = [self._bank(backbone, name) for name in places]
        keys = inputs.keys(rows) if keys is None else keys
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in banks[0]}
        order = list(missing.items())
        if inputs.lengths is not None:
            # Neighbours in length share a batch: less padding, and nothing else depends on it.
            lengths = inputs.lengths
            order.sort(key=lambda item: lengths[item[1]])
        collate = Collate.of(backbone)
        device = next(backbone.parameters(), torch.zeros(0)).device
        training = backbone.training
        backbone.eval()
        waiting: list[dict[str, Array]] = [{} for _ in banks]

        def write() -> None:
            for bank, arrays in zip(banks, waiting, strict=True):
                bank.add(arrays)
                arrays.clear()

        with torch.inference_mode():
            starts = range(0, len(order), batch_size)
            for start in track(starts, "frozen features"):
                part = order[start : start + batch_size]
                batch = collate([inputs[row] for _, row in part])
                outputs = run({key: value.to(device) for key, value in batch.items()})
                for arrays, found in zip(waiting, outputs, strict=False):
                    arrays.update(zip((key for key, _ in part), found, strict=True))
                if len(waiting[0]) >= SEGMENT:
                    write()
        write()
        backbone.train(training)
        return banks[0], keys

    def _bank(self, backbone: Backbone, name: str) -> ArrayBank:
        key = hashlib.sha256(f"{_network(backbone)}/{name}".encode()).hexdigest()[:24]
        return ArrayBank(self.folder / key)


def _network(backbone: Backbone) -> str:
    """What features depend on: the weights, the settings that leave them as they are, the pool."""
    settings = backbone.spec.partition("?")[2]
    return f"{backbone.fingerprint}/{settings}/{backbone.pool}"


def unpadded(states: Tensor, mask: Tensor | None) -> Outputs:
    """States [B, N, ...] as one array [n, ...] a sample, without what the mask [B, N] leaves out."""
    found = states.float().cpu().numpy()
    if mask is None:
        return list(found)
    lengths = mask.sum(1).tolist()
    return [state[:length] for state, length in zip(found, lengths, strict=True)]


class Rows(Dataset[Example]):
    """Chosen rows, each with its label and what was computed ahead for it.

    Args:
        rows: Which rows of `inputs`, `labels` are indexed by the same numbers.
        labels: Targets of the whole cohort.
        inputs: What the network reads; None where a feature stands for it.
        ahead: Arrays computed ahead under the name the encoder takes, aligned with `rows`.
    """

    def __init__(
        self,
        rows: Sequence[int],
        labels: Array,
        *,
        inputs: Inputs | None = None,
        ahead: dict[str, Any] | None = None,
    ) -> None:
        self.rows = np.asarray(rows)
        self.labels = labels
        self.inputs = inputs
        self.ahead = ahead or {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Array | None:
        """Size of each sample, where sizes differ."""
        lengths = None if self.inputs is None else self.inputs.lengths
        return None if lengths is None else lengths[self.rows]

    def __getitem__(self, place: int) -> Example:
        row = int(self.rows[place])
        example: Example = dict(self.inputs[row]) if self.inputs is not None else {}
        example |= {name: np.array(values[place]) for name, values in self.ahead.items()}
        example["labels"] = np.asarray(self.labels[row])
        return example

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to what draws."""
        if self.inputs is not None:
            self.inputs.set_epoch(epoch)
