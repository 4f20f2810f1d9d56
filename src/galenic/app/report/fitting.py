"""How training went: loss and validation over epochs, phase by phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from galenic.app.report import plots
from galenic.core.run import Run

Event = Mapping[str, Any]
# What the phases of a task are for, in their order.
PHASES = {"noise_mask": ["under noise", "without noise"], "probe": ["all probes", "chosen probe"]}


def fit_plots(run: Run) -> list[Any]:
    """Training loss, and what validation said after each epoch."""
    found = phases(run.events())
    names = _names(run)
    drawn: list[Any] = []
    for place, events in enumerate(found):
        name = names[place] if place < len(names) else f"phase {place + 1}"
        drawn += _plots(events, f", {name}" if len(found) > 1 else "")
    return [plot for plot in drawn if plot]


def phases(events: Iterable[Event]) -> list[list[Event]]:
    """Training and validation events of each fit of a run.

    A fit starts at step 1 behind a checkpoint, which the one before it ended with. Any other step
    back is a fit that was cut off and went on from its last checkpoint: what it had said of the
    steps that it repeats is left out.
    """
    found: list[list[Event]] = [[]]
    last: dict[str, int] = {}
    saved = False
    for event in events:
        kind, step = event.get("event", ""), event.get("step", 0)
        saved = saved or kind == "checkpoint"
        if kind not in ("train", "validation"):
            continue
        if step <= last.get(kind, -1):
            if step == 1 and saved:
                found.append([])
            else:
                found[-1] = [known for known in found[-1] if known["step"] < step]
            last, saved = {}, False
        found[-1].append(event)
        last[kind] = step
    return [one for one in found if one]


def _names(run: Run) -> list[str]:
    task, config = run.provenance.get("task", ""), run.config
    if task != "forecast":
        return PHASES.get(task, [])
    tasks = [one if isinstance(one, str) else one.get("name", "") for one in config["tasks"]]
    tuned = tasks if config["how"] == "single" else ["all tasks"]
    return [*(["next token"] if config["pretrain"] else []), *(name or "a task" for name in tuned)]


def _curve(events: Sequence[Event], key: str) -> list[plots.Point]:
    # JSON has no NaN: a figure that is not defined is null.
    return [(e["epoch"], e[key]) for e in events if e.get(key) is not None]


def _plots(events: Sequence[Event], of: str) -> list[Any]:
    from galenic.app.report import words

    scored = [event for event in events if event["event"] == "validation"]
    known = ("event", "step", "epoch", "time")
    key = next((key for event in scored for key in event if key not in known), "")
    train = _curve([event for event in events if event["event"] == "train"], "loss")
    valid = _curve(scored, key)
    name = words(key)
    if name == "loss":
        series = [("training", train), ("validation", valid)]
        return [plots.lines(series, x="epoch", y="loss", unit=False, label=f"Loss{of}")]
    return [
        plots.lines([("loss", train)], x="epoch", y="training loss", unit=False, label=f"Training loss{of}"),
        plots.lines([(name, valid)], x="epoch", y=name, unit=False, label=f"Validation {name}{of}"),
    ]  # fmt: skip
