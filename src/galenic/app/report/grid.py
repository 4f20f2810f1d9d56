"""What the reports of learning curves and of sites show: recipes by columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from galenic.app.report import plots
from galenic.app.report.read import frame
from galenic.core.run import Run
from galenic.evaluation.metrics import greater_is_better

Point = dict[str, Any]


def read_curve(run: Run) -> dict[str, Any]:
    """Context of a report on a learning curve."""
    found = run.read_json("curve.json")
    counts = sorted({point["shots"] for point in found["points"]})
    ticks = [(math.log2(count), str(count)) for count in counts]
    points = [{**point, "at": math.log2(point["shots"])} for point in found["points"]]
    return _grid(run, found, points, [f"{count} a class" for count in counts]) | {
        "title": "Learning curve",
        "lede": f"with {', '.join(map(str, counts))} training patients a class",
        "note": "With one draw, fewer patients are a subset of more.",
        "plot": plots.intervals(
            _series(points), ticks, x="patients a class", y=_words(found["metric"]),
            label=f"{_words(found['metric'])} with few patients a class", joined=True,
        ),
    }  # fmt: skip


def read_sites(run: Run) -> dict[str, Any]:
    """Context of a report on sites held out."""
    found = run.read_json("sites.json")
    columns = [*found["sites"], "mean", "worst"]
    points = []
    for row in found["summary"]:
        own = [point for point in found["points"] if point["recipe"] == row["recipe"]]
        own += [{"recipe": row["recipe"], **row[name]} for name in ("mean", "worst")]
        points += [{**point, "at": float(at)} for at, point in enumerate(own)]
    ticks = [(float(at), name) for at, name in enumerate(columns)]
    return _grid(run, found, points, columns) | {
        "title": "Sites",
        "lede": f"on {len(found['sites'])} sites, each held out once",
        "note": "Settings are chosen on patients of the training sites. "
        "The worst site is that of each draw.",
        "plot": plots.intervals(
            _series(points), ticks, x="site held out", y=_words(found["metric"]),
            label=f"{_words(found['metric'])} on sites never seen", joined=False,
        ),
    }  # fmt: skip


def _grid(run: Run, found: Point, points: Sequence[Point], columns: list[str]) -> Point:
    pick = max if greater_is_better(found["metric"]) else min
    best = {
        at: pick(p["value"] for p in points if p["at"] == at) for at in {p["at"] for p in points}
    }
    rows = [
        (name, [{**point, "best": point["value"] == best[point["at"]]} for point in own])
        for name, own in _series(points)
    ]
    return frame(run) | {
        "data": found["data"],
        "backbone": found["backbone"],
        "metric": _words(found["metric"]),
        "seeds": run.config["seeds"],
        "columns": columns,
        "rows": rows,
    }


def _series(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point["recipe"], []).append(point)
    return list(series.items())


def _words(name: str) -> str:
    from galenic.app.report import words

    return words(name)
