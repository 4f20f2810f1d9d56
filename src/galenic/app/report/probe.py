"""What a page shows of linear probes: every setting that was tried, on validation."""

from __future__ import annotations

import math
from typing import Any

from galenic.app.report import plots
from galenic.core.run import Run

SETTINGS = ("blocks", "average", "lr")


def read_probe(run: Run) -> dict[str, Any] | None:
    """Context of the section on probes; None of a run without them."""
    from galenic.app.report import words

    if not (run.path / "probe.json").is_file():
        return None
    document = run.read_json("probe.json")
    tried, chosen = document["tried"], document["chosen"]
    metric = next(key for key in tried[0] if key not in SETTINGS)
    series: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(tried, key=lambda row: row["lr"]):
        if row[metric] is not None:
            point = {"at": math.log10(row["lr"]), "value": row[metric], "low": None, "high": None}
            series.setdefault(_features(row), []).append(point)
    rates = sorted({row["lr"] for row in tried})
    name = words(metric)
    rows = [
        {
            "features": _features(row),
            "lr": row["lr"],
            "value": row[metric],
            "chosen": all(row[key] == chosen[key] for key in SETTINGS),
        }
        for row in tried
    ]
    return {
        "metric": name,
        "rows": rows,
        "chosen": _features(chosen),
        "lr": chosen["lr"],
        "refit": run.config["probe"]["refit"],
        "plot": plots.intervals(
            list(series.items()), [(math.log10(rate), f"{rate:g}") for rate in rates],
            x="peak learning rate (log)", y=name, label=f"Probes: {name} on validation",
            joined=True,
        ),
    }  # fmt: skip


def _features(row: dict[str, Any]) -> str:
    """What a probe reads, in words."""
    blocks = "last block" if row["blocks"] == 1 else f"last {row['blocks']} blocks"
    return f"{blocks} and mean token" if row["average"] else blocks
