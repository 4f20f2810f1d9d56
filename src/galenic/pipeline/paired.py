"""Samples of several modalities to batches, and batches to models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from galenic.models.lego.assembly import Assembly
from galenic.models.lego.block import LegoBlock
from galenic.pipeline.inputs import Array, Collate
from galenic.pipeline.lego import TOKENS, Modality


class PairedRows(Dataset[dict[str, Any]]):
    """Chosen rows of several modalities, each with its label; what is missing is left out.

    Args:
        modalities: In the order that :class:`PairedCollate` and :class:`Fed` have too.
        rows: Row numbers in the manifest.
        labels: Targets of the whole cohort.
        training: Draw augmentations.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        rows: Array,
        labels: Array,
        *,
        training: bool = False,
    ) -> None:
        self.modalities, self.rows, self.labels = list(modalities), np.asarray(rows), labels
        self.training = training

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Array | None:
        """Tokens of the texts of each sample, where there are texts."""
        found = [(m.present, m.inputs.lengths) for m in self.modalities]
        counts = [np.where(there, n, 0)[self.rows] for there, n in found if n is not None]
        total: Array | None = np.sum(counts, axis=0) if counts else None
        return total

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = int(self.rows[place])
        parts = {
            at: m.example(row, self.training)
            for at, m in enumerate(self.modalities)
            if m.present[row]
        }
        return {"parts": parts, "labels": np.asarray(self.labels[row])}

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to what draws."""
        for modality in self.modalities:
            if modality.augmented is not None:
                modality.augmented.set_epoch(epoch)


class PairedCollate:
    """Samples to one batch: `labels`, `present` [B, M], and `PLACE.KEY` for every modality.

    A sample that lacks a modality has zeros in its place, which nothing looks at.
    """

    def __init__(self, modalities: Sequence[Modality]) -> None:
        self.collates = [Collate.of(m.backbone) for m in modalities]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Tensors [B, ...] by key."""
        batch = {"labels": torch.from_numpy(np.stack([e["labels"] for e in examples]))}
        present = torch.zeros(len(examples), len(self.collates), dtype=torch.bool)
        for at, collate in enumerate(self.collates):
            found = [example["parts"].get(at) for example in examples]
            present[:, at] = torch.tensor([part is not None for part in found])
            model = next((part for part in found if part is not None), None)
            if model is None:
                continue
            empty = {key: np.zeros_like(value) for key, value in model.items()}
            filled = [empty if part is None else part for part in found]
            one = _states(filled) if TOKENS in model else collate(filled)
            batch |= {f"{at}.{key}": value for key, value in one.items()}
        return batch | {"present": present}


def _states(parts: Sequence[Mapping[str, Array]]) -> dict[str, Tensor]:
    """States [B, n, D] computed ahead, padded, with a mask where their lengths differ."""
    states = [torch.from_numpy(np.asarray(part[TOKENS])) for part in parts]
    lengths = torch.tensor([len(state) for state in states])
    padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
    if bool((lengths == lengths[0]).all()):
        return {TOKENS: padded}
    return {TOKENS: padded, "mask": torch.arange(padded.shape[1]) < lengths[:, None]}


class Fed(nn.Module):
    """A model of named modalities, fed with the batches of :class:`PairedCollate`.

    Args:
        model: Takes inputs and presence by modality; a block takes its own input.
        names: The modalities, in the order of the batches.
    """

    def __init__(self, model: Assembly | LegoBlock | nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, present: Tensor, **parts: Tensor) -> Tensor:
        """Logits [B, outputs].

        Args:
            present: Bool [B, M].
            **parts: `PLACE.KEY` as the collation names them.
        """
        inputs: dict[str, dict[str, Tensor]] = {}
        for key, value in parts.items():
            at, _, name = key.partition(".")
            inputs.setdefault(self.names[int(at)], {})[name] = value
        found: Tensor
        if isinstance(self.model, LegoBlock):
            found = self.model(inputs[self.names[0]])
        elif bool(present.all()):
            found = self.model(inputs)
        else:
            found = self.model(inputs, {n: present[:, at] for at, n in enumerate(self.names)})
        return found


class Concatenated(nn.Module):
    """The baseline of early fusion: mean states side by side, and a small network on them.

    Args:
        encoders: By modality, each with the `width` of its states.
        outputs: Number of logits.
        hidden: Width of the hidden layer.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], outputs: int, hidden: int = 128) -> None:
        super().__init__()
        self.names = tuple(encoders)
        self.encoders = nn.ModuleList(encoders.values())
        self.widths = [int(encoder.width) for encoder in encoders.values()]  # type: ignore[arg-type]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)
        self.mlp = nn.Sequential(
            nn.Linear(sum(self.widths) + len(self.widths), hidden),
            nn.SELU(),
            nn.Linear(hidden, outputs),
        )

    def forward(
        self,
        inputs: Mapping[str, Mapping[str, Tensor]],
        present: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits [B, outputs]; a missing modality is zeros and a flag."""
        one = next(iter(next(iter(inputs.values())).values()))
        found = []
        for place, name in enumerate(self.names):
            there = torch.zeros(len(one), 1, device=one.device)
            pooled = torch.zeros(len(one), self.widths[place], device=one.device)
            if name in inputs:
                states, mask = self.encoders[place](**inputs[name])
                there = there + (1.0 if present is None else present[name][:, None].float())
                keep = torch.ones_like(states[..., :1]) if mask is None else mask[..., None]
                mean = (states * keep).sum(dim=1) / keep.sum(dim=1).clamp_min(1)
                pooled = self.norms[place](mean) * there
            found += [pooled, there]
        logits: Tensor = self.mlp(torch.cat(found, dim=1))
        return logits
