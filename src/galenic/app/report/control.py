"""The page of a steered twin: held-out trajectories, targets, and how far the metamodel was off."""

from __future__ import annotations

from typing import Any

import pandas as pd

from galenic.app.report import plots
from galenic.app.report.read import frame
from galenic.core.config import dump_yaml
from galenic.core.run import Run

# Points of a drawn curve.
_DRAWN = 60


def read_control(run: Run) -> dict[str, Any]:
    """Context of the page of a control run."""
    document, scores = run.read_json("control.json"), run.read_json("metrics.json")
    table = pd.read_parquet(run.path / "trajectories.parquet")
    drawn = [
        _plot(table, name, about, document["time_unit"], document["dt"])
        for name, about in {**document["states"], **document["controls"]}.items()
    ]
    history = [(float(epoch), cost) for epoch, cost in enumerate(document["history"])]
    drawn.append(
        plots.lines([("J", history)], x="epoch", y="J", label="J while training", unit=False)
    )
    return frame(run) | {
        "title": document["twin"],
        "document": document,
        "metrics": scores["test"],
        "main": scores["main"],
        "plots": [plot for plot in drawn if plot],
        "config": dump_yaml(run.config),
    }


def _plot(table: pd.DataFrame, name: str, about: dict[str, Any], unit: str, dt: float) -> Any:
    """Median and central 90 % of the held-out runs over time."""
    known = table[["step", name]].dropna()
    if not known[name].any():
        return None
    grouped = known.groupby("step")[name]
    every = max(1, grouped.ngroups // _DRAWN)
    times = [step * dt for step in range(0, grouped.ngroups, every)]
    series = [
        (label, list(zip(times, grouped.quantile(share).tolist()[::every], strict=True)))
        for label, share in (("median", 0.5), ("5 %", 0.05), ("95 %", 0.95))
    ]
    if about.get("target") is not None:
        series.append(("target", [(at, about["target"]) for at in (times[0], times[-1])]))
    label = f"{name.replace('_', ' ')} of held-out runs"
    return plots.lines(series, x=f"time, {unit}", y=about["unit"], label=label, unit=False)
