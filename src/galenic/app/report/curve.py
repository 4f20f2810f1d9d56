"""What the report of a learning curve shows."""

from __future__ import annotations

from typing import Any

from galenic.app.report import plots
from galenic.app.report.read import frame
from galenic.core.run import Run


def read_curve(run: Run) -> dict[str, Any]:
    """Context of a report on a learning curve."""
    from galenic.app.report import words

    found = run.read_json("curve.json")
    series: dict[str, list[dict[str, Any]]] = {}
    for point in found["points"]:
        series.setdefault(point["recipe"], []).append(point)
    counts = sorted({point["shots"] for point in found["points"]})
    metric = words(found["metric"])
    best = {
        count: max(p["value"] for p in found["points"] if p["shots"] == count) for count in counts
    }
    return frame(run) | {
        "title": "Learning curve",
        "data": found["data"],
        "backbone": found["backbone"],
        "metric": found["metric"],
        "seeds": run.config["seeds"],
        "counts": counts,
        "series": series,
        "best": best,
        "plot": plots.shots(
            list(series.items()), y=metric, label=f"{metric} with few patients a class"
        ),
    }
