"""What a merge did, tensor by tensor and over all: kept shares, norms, cosines, warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from galenic.merging.jobs import Job
from galenic.merging.sources import BLOCK

# Weights of networks that were trained apart have a cosine near zero, those of one lineage near 1.
LINEAGE = 0.1
# Of a tensor above BLOCK entries, figures come from one piece of so many entries in _EVERY.
_PIECE = BLOCK // 8
_EVERY = 8


@dataclass
class Figures:
    """Inner products of the base (row 0) and the task vectors (rows 1 to K) of one tensor.

    Attributes:
        name: Of the tensor.
        shape: Of the tensor.
        gram: [K + 1, K + 1], scaled up to the whole tensor.
        measured: Share of the entries that were looked at.
    """

    name: str
    shape: tuple[int, ...]
    gram: torch.Tensor
    measured: float


def measure(job: Job) -> Figures:
    """Inner products of one tensor; of a large one, from evenly spread pieces."""
    count = len(job.parents) + 1
    gram = torch.zeros(count, count, dtype=torch.float64)
    every = _EVERY if job.size > BLOCK else 1
    seen = 0
    rows = torch.empty(count, min(_PIECE, job.size), dtype=job.dtype)
    for start in range(0, job.size, every * _PIECE):
        stop = min(start + _PIECE, job.size)
        base = job.read(job.base, start, stop, rows[0])
        for index in range(len(job.parents)):
            job.delta(index, start, stop, base, rows[index + 1])
        part = rows[:, : stop - start]
        # Row by row: as one product of so few rows MKL would do it several times as slowly.
        gram += torch.stack([part @ row for row in part]).double()
        seen += stop - start
    share = seen / job.size if job.size else 1.0
    return Figures(job.name, job.base.shape, gram / max(share, 1e-300), share)


@dataclass
class Report:
    """Gathers what is written to `merge_report.json`.

    Attributes:
        keys: Names of the models, in the order of every list of figures.
        notes: What differed and how it was handled.
        warnings: What a user should look at.
    """

    keys: Sequence[str]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _grams: list[Figures] = field(default_factory=list)
    _kept: list[list[int]] = field(default_factory=list)
    _averaged: list[str] = field(default_factory=list)

    def add(self, job: Job, figures: Figures) -> None:
        """Take the figures of one tensor that was merged."""
        row: dict[str, Any] = {"name": job.name, "shape": list(figures.shape)}
        if any(kept is not None for kept in job.kept):
            row["kept"] = {
                key: 1.0 if kept is None or not job.size else kept / job.size
                for key, kept in zip(self.keys, job.kept, strict=True)
            }
            row["norm_kept"] = {
                key: _root(figures.gram[i + 1, i + 1].item() if pair is None else pair[1])
                for i, (key, pair) in enumerate(zip(self.keys, job.squares, strict=True))
            }
        if job.averaged:
            self._averaged.append(job.name)
        self._rows.append(row | _figures(figures.gram, self.keys) | {"measured": figures.measured})
        self._grams.append(figures)
        self._kept.append([job.size if kept is None else kept for kept in job.kept] + [job.size])

    def finish(self) -> dict[str, Any]:
        """The whole document, with the warnings on lineage."""
        count = len(self.keys) + 1
        # Tensors come in any order, and a sum should not depend on it.
        grams = sorted(self._grams, key=lambda figures: figures.name)
        total = sum((f.gram for f in grams), torch.zeros(count, count, dtype=torch.float64))
        # Norms and biases start alike in every network; matrices tell who descends from whom.
        matrices = [f.gram for f in grams if len(f.shape) > 1] or [f.gram for f in grams]
        lineage = sum(matrices, torch.zeros(count, count, dtype=torch.float64))
        whole = _figures(total, self.keys)
        whole["lineage"] = _lineage(lineage, self.keys)
        entries = [sum(column) for column in zip(*self._kept, strict=True)] or [0] * count
        whole["kept"] = {
            key: entries[i] / entries[-1] if entries[-1] else 1.0 for i, key in enumerate(self.keys)
        }
        for key, cosine in whole["lineage"].items():
            if cosine is not None and cosine < LINEAGE:
                self.warnings.append(
                    f"{key} seems to be of another lineage: the cosine of its weights with the "
                    f"base's is {cosine:.3f}; arithmetic on unrelated weights gives noise."
                )
        if self._averaged:
            self.notes.append(
                f"{len(self._averaged)} running means and variances, such as "
                f"'{min(self._averaged)}', got the mean of the changes, nothing dropped: a sum may "
                "make a variance negative"
            )
        return {
            "models": list(self.keys),
            "whole": whole,
            "warnings": self.warnings,
            "notes": self.notes,
            "tensors": sorted(self._rows, key=lambda row: str(row["name"])),
        }


def _figures(gram: torch.Tensor, keys: Sequence[str]) -> dict[str, Any]:
    norms = [_root(gram[i, i].item()) for i in range(len(keys) + 1)]
    cosine = {
        f"{a} | {b}": _ratio(gram[i + 1, j + 1].item(), norms[i + 1] * norms[j + 1])
        for i, a in enumerate(keys)
        for j, b in enumerate(keys)
        if i < j
    }
    return {
        "norm_base": norms[0],
        "norm": dict(zip(keys, norms[1:], strict=True)),
        "cosine": cosine,
        "lineage": _lineage(gram, keys),
    }


def _lineage(gram: torch.Tensor, keys: Sequence[str]) -> dict[str, float | None]:
    found = {}
    for i, key in enumerate(keys, start=1):
        bb, bd, dd = gram[0, 0].item(), gram[0, i].item(), gram[i, i].item()
        found[key] = _ratio(bb + bd, _root(bb) * _root(bb + 2 * bd + dd))
    return found


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0)) if math.isfinite(square) else square


def _ratio(a: float, b: float) -> float | None:
    """A cosine; None where one of both is zero, and so has no direction."""
    return max(-1.0, min(1.0, a / b)) if b > 0 else None
