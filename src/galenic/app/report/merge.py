"""The picture of a merge: what of every change was kept, how large it was, where changes agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from galenic.app.report import plots
from galenic.core.files import atomic_write
from galenic.merging.settings import layer_of


def write(folder: Path) -> Path:
    """Write `merge_report.html` beside the `merge_report.json` of a merged checkpoint."""
    from galenic.app.report import _environment

    document = json.loads((folder / "merge_report.json").read_text(encoding="utf-8"))
    target = folder / "merge_report.html"
    page = _environment().get_template("merge.html.j2").render(**_context(document))
    atomic_write(target, page)
    return target


def _context(document: Mapping[str, Any]) -> dict[str, Any]:
    rows = layers(document["tensors"], document["models"])
    keys, pairs = document["models"], list(document["whole"]["cosine"])
    drawn = [
        _plot("share kept", rows, keys, "kept"),
        _plot("change over base", rows, keys, "relative"),
        _plot("cosine of changes", rows, pairs, "cosine"),
    ]
    return {
        "title": "Merge",
        "document": document,
        "whole": document["whole"],
        "models": keys,
        "pairs": pairs,
        "rows": rows,
        "plots": [plot for plot in drawn if plot],
        "date": datetime.now(UTC).date().isoformat(),
    }


def layers(tensors: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Figures of the tensors, put together by layer, in the order of the network's names.

    Args:
        tensors: Rows of a `merge_report.json`.
        keys: Names of the models.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in tensors:
        stack, number = layer_of(row["name"])
        place = (row["name"], -1) if number is None else (stack, number)
        groups.setdefault(place, []).append(row)
    return [_group(place, groups[place], keys) for place in sorted(groups)]


def _group(
    place: tuple[str, int], rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, Any]:
    name, number = place
    sizes = [math.prod(row["shape"]) for row in rows]
    base = math.hypot(*(row["norm_base"] for row in rows))
    norms = {key: math.hypot(*(row["norm"][key] for row in rows)) for key in keys}
    found: dict[str, Any] = {
        "name": name if number < 0 else f"{name}{number}",
        "relative": {key: norm / base if base else None for key, norm in norms.items()},
        "kept": {},
        "cosine": {},
    }
    for key in keys:
        kept = sum(
            row.get("kept", {}).get(key, 1.0) * n for row, n in zip(rows, sizes, strict=True)
        )
        found["kept"][key] = kept / sum(sizes) if sum(sizes) else 1.0
    for i, a in enumerate(keys):
        for b in keys[i + 1 :]:
            pair = f"{a} | {b}"
            dot = sum(
                (row["cosine"][pair] or 0.0) * row["norm"][a] * row["norm"][b] for row in rows
            )
            scale = norms[a] * norms[b]
            found["cosine"][pair] = dot / scale if scale else None
    return found


def _plot(what: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], key: str) -> Any:
    series = [
        (
            name,
            [
                (float(at), row[key][name])
                for at, row in enumerate(rows)
                if row[key][name] is not None
            ],
        )
        for name in names
    ]
    if len(rows) < 2 or not series:
        return None
    return plots.lines(series, x="layer", y=what, label=f"{what}, layer by layer", unit=False)
