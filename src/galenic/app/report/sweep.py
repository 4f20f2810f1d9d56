"""The picture of a sweep: task against task, every point a set of coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from galenic.app.report import plots
from galenic.app.report.read import frame
from galenic.core.run import Run


def read_merged(run: Run) -> dict[str, Any]:
    """Context of the page of merged runs."""
    # Of several runs there is no one cohort; theirs are named in their own reports.
    return frame(run) | {"title": "Merge", "sweep": read_sweep(run)}


def read_sweep(run: Run) -> dict[str, Any] | None:
    """What a page shows of a sweep; None of a run without one."""
    if not (run.path / "sweep.json").is_file():
        return None
    document = run.read_json("sweep.json")
    points, best = document["points"], document["best"]
    drawn = [
        _frontier(points, best, document["chosen_on"]),
        _along(points, best, document["chosen_on"]),
        _counts(document.get("counts", ())),
    ]
    rows = [{"words": words(point["settings"]), **point} for point in points]
    return document | {
        "rows": rows,
        "best": words(best["settings"]),
        "plots": [plot for plot in drawn if plot],
    }


def words(settings: Mapping[str, Any]) -> str:
    """Coefficients as one writes them."""
    parts = [
        ", ".join(value) if key == "models" else f"{key} {value:g}"
        for key, value in settings.items()
    ]
    return ", ".join(parts) or "as the recipe says"


def _frontier(
    points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], tasks: Sequence[str]
) -> Any:
    if len(tasks) < 2 or len(points) < 2:
        return None
    a, b = tasks[:2]
    curves: dict[str, list[plots.Point]] = {}
    for point in points:
        other = {key: value for key, value in point["settings"].items() if key != "alpha"}
        curves.setdefault(words(other) if other else "alpha", []).append(_place(point, a, b))
    series = [*curves.items(), ("chosen", [_place(chosen, a, b)])]
    label = f"{b} against {a}: normalised validation figures, every point a set of coefficients"
    return plots.lines(series, x=a, y=b, label=label, unit=False)


def _place(point: Mapping[str, Any], a: str, b: str) -> plots.Point:
    values = point["normalised"]
    # JSON has no NaN: a figure that is not defined is null.
    return tuple(float("nan") if values[n] is None else values[n] for n in (a, b))  # type: ignore[return-value]


def _along(
    points: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], tasks: Sequence[str]
) -> Any:
    """Every task over alpha, with the other coefficients as they were chosen."""

    def rest(point: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in point["settings"].items() if key != "alpha"}

    line = [p for p in points if "alpha" in p["settings"] and rest(p) == rest(chosen)]
    if len(line) < 2:
        return None
    series = [
        (name, [(p["settings"]["alpha"], _place(p, name, name)[0]) for p in line]) for name in tasks
    ]
    label = "Normalised validation figure of every task over alpha"
    return plots.lines(series, x="alpha", y="normalised", label=label, unit=False)


def _counts(counts: Sequence[Mapping[str, Any]]) -> Any:
    if len(counts) < 2:
        return None
    line = [(float(row["count"]), row["mean"]["value"]) for row in counts]
    return plots.lines(
        [("mean", line)], x="tasks merged", y="normalised", unit=False,
        label="Mean normalised test figure against the number of tasks",
    )  # fmt: skip
