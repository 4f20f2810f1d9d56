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
ALL = "all"
# Metrics between 0 and 1: Student's interval knows no ends, but the picture need not go beyond.
UNIT = {"auroc", "auprc", "accuracy", "balanced_accuracy", "macro_f1", "minority_recall", "dice",
        "iou", "map", "froc", "brier", "ece", "concordance"}  # fmt: skip


def read_curve(run: Run) -> dict[str, Any]:
    """Context of a report on a learning curve."""
    found = run.read_json("curve.json")
    counts = list(dict.fromkeys(point["shots"] for point in found["points"]))
    most = max((math.log2(count) for count in counts if count != ALL), default=0.0)
    # All patients are many: a step behind the last count, wherever that is.
    places = {count: most + 1 if count == ALL else math.log2(count) for count in counts}
    ticks = [(at, str(count)) for count, at in places.items()]
    points = [{**point, "at": places[point["shots"]]} for point in found["points"]]
    of = found["of"]
    left = "".join(f" {name} was left out: {why}" for name, why in found["left_out"].items())
    names = [ALL if count == ALL else f"{count} {of}" for count in counts]
    return _grid(run, found, points, names) | {
        "title": "Learning curve",
        "lede": f"with {', '.join(map(str, counts))} training patients {of}",
        "note": f"With one draw, fewer patients are a subset of more.{left}",
        "plot": plots.intervals(
            _series(_drawn(points, found["metric"])), ticks, x=f"patients {of}", y=_words(found["metric"]),
            label=f"{_words(found['metric'])} with few patients {of}{_cut(found)}", joined=True,
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
            _series(_drawn(points, found["metric"])), ticks, x="site held out", y=_words(found["metric"]),
            label=f"{_words(found['metric'])} on sites never seen{_cut(found)}", joined=False,
        ),
    }  # fmt: skip


def _grid(run: Run, found: Point, points: Sequence[Point], columns: list[str]) -> Point:
    pick = max if greater_is_better(found["metric"]) else min
    best = {
        at: pick(
            (p["value"] for p in points if p["at"] == at and p["value"] is not None), default=None
        )
        for at in {p["at"] for p in points}
    }
    rows = [
        (name, [{**point, "best": _is_best(point, best)} for point in own])
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


def _is_best(point: Point, best: dict[float, float | None]) -> bool:
    return point["value"] is not None and point["value"] == best[point["at"]]


def _drawn(points: Sequence[Point], metric: str) -> list[Point]:
    """Points whose whiskers end where the metric does."""
    if metric not in UNIT:
        return list(points)
    return [
        {**p, **{k: min(max(p[k], 0.0), 1.0) for k in ("low", "high") if p[k] is not None}}
        for p in points
    ]


def _cut(found: Point) -> str:
    return "; whiskers are cut at 0 and 1" if found["metric"] in UNIT else ""


def _series(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point["recipe"], []).append(point)
    return list(series.items())


def _words(name: str) -> str:
    from galenic.app.report import words

    return words(name)
