"""What a page shows of a network of stays: its gates over time, and the channels it looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from galenic.app.report import plots
from galenic.core.run import Run

# Hours between two ticks, and the most ticks of an axis.
STEPS_H, MOST_TICKS = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168), 8
# Channels that stand in the open; the rest is behind a click.
SHOWN = 12


def read_stays(run: Run) -> dict[str, Any] | None:
    """Context of the section on gates and channels; None of a run without them."""
    if not (run.path / "gates.json").is_file():
        return None
    document = run.read_json("gates.json")
    gates: Mapping[str, Any] = document["gates"]
    timed = {name: points for name, points in gates.items() if points[0]["hour"] is not None}
    channels = {name: _ranked(rows) for name, rows in document["channels"].items()}
    return {
        "level": document["level"],
        "single": [(name, points[0]) for name, points in gates.items() if name not in timed],
        "plot": _gates(timed, run.config["series"]["window_hours"]) if timed else None,
        "channels": [(name, rows[:SHOWN], rows[SHOWN:]) for name, rows in channels.items()],
    }


def _gates(gates: Mapping[str, Sequence[dict[str, Any]]], window: float) -> Any:
    series = [
        (name, [{**point, "at": point["hour"]} for point in points])
        for name, points in gates.items()
    ]
    step = next((step for step in STEPS_H if window / step <= MOST_TICKS), window)
    places = [float(k * step) for k in range(int(window // step) + 1)]
    return plots.intervals(
        series, [(at, f"{at:g}") for at in places], x="hours since the window began", y="mean gate",
        label="Gates over the test stays", joined=True,
    )  # fmt: skip


def _ranked(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Channels by their share, each with a picture of its interval."""
    ends = [row[key] for row in rows for key in ("value", "high") if row[key] is not None]
    most = max(ends, default=1.0)
    return [
        {**row, "spark": plots.interval(row["low"], row["value"], row["high"], 0.0, most)}
        for row in sorted(rows, key=lambda row: -row["value"])
    ]
