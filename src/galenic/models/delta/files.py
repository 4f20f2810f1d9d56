"""A delta as one safetensors file; what has no tensor stands in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.core.files import atomic_write
from galenic.models.delta.entries import Dense, Entry, LowRank, Sparse, numel

FORMAT = "galenic-delta-1"
_PARTS = {"dense": ("values",), "low_rank": ("b", "a"), "sparse": ("index", "values")}


def write(
    path: Path,
    entries: Mapping[str, Entry],
    absolute: Mapping[str, Tensor],
    base: str,
    extra: Mapping[str, str],
) -> None:
    """Write a file, whole or not at all; see :meth:`galenic.models.delta.Delta.save`."""
    tensors: dict[str, Tensor] = {f"absolute/{n}": t for n, t in absolute.items()}
    layout: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        kind = _kind(entry)
        layout[name] = {"kind": kind, "shape": list(entry.shape)}
        if isinstance(entry, LowRank):
            layout[name]["scale"] = entry.scale
        for part in _PARTS[kind]:
            tensors[f"{kind}/{part}/{name}"] = getattr(entry, part)
    metadata = {
        **extra,
        "format": "pt",
        "delta": FORMAT,
        "base_fingerprint": base,
        "layout": json.dumps(layout, sort_keys=True),
    }
    # A clone of its own: safetensors refuses views that share storage.
    copies = {n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()}
    atomic_write(path, save(copies, metadata=metadata))


def read(path: Path) -> tuple[dict[str, Entry], dict[str, Tensor], str, dict[str, str]]:
    """Entries, absolute tensors, fingerprint of the base and all metadata of a file.

    Raises:
        WeightsError: If the file is damaged, or no delta; names the tensor.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"'{path.name}' cannot be read: {error}",
            where=str(path),
            expected="a complete safetensors file",
        ) from None
    if metadata.get("delta") != FORMAT:
        raise WeightsError(
            f"'{path.name}' is no delta.", where=str(path), expected=f"metadata 'delta': {FORMAT}"
        )
    try:
        layout = json.loads(metadata["layout"])
        entries = {name: _entry(name, spec, tensors) for name, spec in layout.items()}
        base = metadata["base_fingerprint"]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"'{path.name}' is damaged: {error}", where=str(path)) from None
    absolute = {
        key.removeprefix("absolute/"): value
        for key, value in tensors.items()
        if key.startswith("absolute/")
    }
    return entries, absolute, base, metadata


def _kind(entry: Entry) -> str:
    if isinstance(entry, Dense):
        return "dense"
    return "low_rank" if isinstance(entry, LowRank) else "sparse"


def _entry(name: str, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Entry:
    kind = spec["kind"]
    shape = tuple(int(side) for side in spec["shape"])
    parts = [tensors[f"{kind}/{part}/{name}"] for part in _PARTS[kind]]
    if kind == "dense":
        _require(tuple(parts[0].shape) == shape, name, "its shape is not the one in the layout")
        return Dense(parts[0])
    if kind == "low_rank":
        b, a = parts
        fits = b.ndim == a.ndim == 2 and b.shape[1] == a.shape[0]
        fits = fits and b.shape[0] * a.shape[1] == numel(shape)
        _require(fits, name, "its factors do not fit its shape")
        return LowRank(b, a, float(spec["scale"]), shape)
    index, values = parts
    _require(index.dtype == torch.int64 and index.ndim == 1, name, "its index is no int64 vector")
    _require(index.shape == values.shape, name, "it has another number of values than of places")
    if len(index):
        inside = int(index[0]) >= 0 and int(index[-1]) < numel(shape)
        _require(bool((index.diff() > 0).all()), name, "its places are not in ascending order")
        _require(inside, name, "a place lies outside the tensor")
    return Sparse(index, values, shape)


def _require(holds: bool, name: str, fault: str) -> None:
    if not holds:
        raise ValueError(f"tensor '{name}': {fault}")
