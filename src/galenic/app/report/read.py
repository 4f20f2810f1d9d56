"""What the report shows, read from a run folder; a missing file becomes a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galenic.app.report import plots
from galenic.app.report.embedded import png_of
from galenic.app.report.fitting import fit_plots
from galenic.app.report.forecast import read_tasks
from galenic.app.report.masks import read_masks
from galenic.app.report.probe import read_probe
from galenic.app.report.stays import read_stays
from galenic.core.config import dump_yaml
from galenic.core.errors import RunError
from galenic.core.run import Run
from galenic.evaluation.curves import confusion_table, pr_curve, roc_curve

MOST_CURVES = 6
# Below this nobody asks where the time went.
NOTICED_S = 1.0
# What a page says of its data, where the run ended before they were described, or has none.
UNDESCRIBED: dict[str, Any] = {"name": "", "title": "", "kind": "", "n": 0, "patients": 0,
                               "classes": [], "fingerprint": "", "license": ""}  # fmt: skip


def read_run(run: Run) -> dict[str, Any]:
    """Context of a report on one run."""
    arm = _arm(run, run.provenance.get("recipe", run.path.name))
    return frame(run) | {
        "title": arm["name"],
        "backbone": (run.provenance.get("weights") or {}).get("backbone", ""),
        "metric": arm["metric"],
        "board": None,
        "arms": [arm],
    }


def read_comparison(run: Run) -> dict[str, Any]:
    """Context of a report on a comparison."""
    board = run.read_json("leaderboard.json")
    metric = board["metric"]
    ends = [e[k] for row in board["rows"] if (e := row["metrics"][metric]) for k in ("low", "high")]
    ends = [end for end in ends if end is not None] or [0.0, 1.0]
    against = {d["b"]: d for d in board["differences"]}
    rows = []
    for row in board["rows"]:
        estimate = row["metrics"][metric]
        rows.append(
            row
            | {
                "spark": plots.interval(
                    estimate["low"], estimate["value"], estimate["high"], min(ends), max(ends)
                ),
                "against": against.get(row["recipe"]),
            }
        )
    # The rest find the features in the cache.
    first = max(board["rows"], key=lambda row: row["cost"]["feature_seconds"])
    paid = first if first["cost"]["feature_seconds"] >= NOTICED_S else None
    arms = []
    for row in board["rows"]:
        try:
            arms.append(_arm(Run.open(run.path / row["run"]), row["recipe"]))
        except RunError:
            continue
    return frame(run) | {
        "title": "Comparison",
        "data": board["data"],
        "backbone": board["backbone"],
        "metric": metric,
        "board": board | {"rows": rows, "plots": _cost_plots(board, metric), "paid": paid},
        "arms": arms,
    }


def frame(run: Run) -> dict[str, Any]:
    """What every report says of its run."""
    status, provenance = run.read_json("status.json"), run.provenance
    return {
        "state": status["state"],
        "message": status.get("message", ""),
        "provenance": provenance,
        "data": UNDESCRIBED | (provenance.get("data") or {}),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cost_plots(board: Mapping[str, Any], metric: str) -> list[Any]:
    from galenic.app.report import words

    def rows(key: str) -> list[dict[str, Any]]:
        return [
            {
                "name": row["recipe"],
                "x": row["cost"][key],
                "pareto": row["pareto"],
                **{k: row["metrics"][metric][k] for k in ("value", "low", "high")},
            }
            for row in board["rows"]
        ]

    name = words(metric)
    return [
        plots.cost(
            rows("trainable_share"), x="trainable share (log)", y=name, log=True,
            label=f"{name} against the share of parameters that train",
        ),
        plots.cost(
            rows("seconds"), x="seconds", y=name, log=False, label=f"{name} against time"
        ),
        plots.cost(
            rows("peak_memory_mb"), x="peak memory, MB", y=name, log=False,
            label=f"{name} against peak memory",
        ),
    ]  # fmt: skip


def _arm(run: Run, name: str) -> dict[str, Any]:
    scores = _json(run, "metrics.json") or {}
    kind, classes = scores.get("kind", ""), scores.get("classes", [])
    table = _predictions(run)
    return {
        "name": name,
        "folder": run.path.name,
        "state": run.state,
        "metric": scores.get("main", ""),
        "metrics": scores.get("test", {}),
        "kind": kind,
        "classes": classes,
        "cost": _json(run, "cost.json"),
        "curves": _curves(kind, classes, table),
        "confusion": _confusion(kind, classes, table),
        "calibration": _calibration(run),
        "operating": _json(run, "operating.json"),
        "labels": _json(run, "labels.json"),
        "by_class": _json(run, "classes.json"),
        "subgroups": _json(run, "subgroups.json"),
        "samples": [
            (title, _samples(run, name))
            for title, name in (("Worst mistakes", "mistakes"), ("Surest right answers", "best"))
        ],
        "pictures": png_of(run.path / "pictures.png"),
        "structures": _json(run, "structures.json"),
        "overlays": with_pictures(run, _json(run, "overlays.json") or []),
        "probe": read_probe(run),
        "stays": read_stays(run),
        "masks": read_masks(run),
        "tasks": read_tasks(run),
        "fit": fit_plots(run),
        "config": dump_yaml(run.config),
    }


def with_pictures(run: Run, shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of :func:`galenic.pipeline.pictures.write_overlay`, each with its picture in it."""
    return [entry | {"data": png_of(run.path / entry["png"])} for entry in shown]


def _json(run: Run, name: str) -> Any:
    try:
        return run.read_json(name)
    except RunError:
        return None


def _predictions(run: Run) -> pd.DataFrame | None:
    path = run.path / "predictions.parquet"
    if not path.is_file():
        return None
    table = pd.read_parquet(path)
    return table[table["split"] == "test"]


def _scores(table: pd.DataFrame) -> np.ndarray[Any, Any]:
    return table.filter(regex=r"^score_\d+$").to_numpy()


def _curves(kind: str, classes: list[str], table: pd.DataFrame | None) -> list[Any]:
    """ROC and precision-recall: of the one class, or of the six commonest against the rest."""
    if table is None or not len(table) or kind in ("", "continuous"):
        return []
    scores = _scores(table)
    named: list[tuple[str, Any, Any]] = []
    if kind == "binary":
        named = [
            (
                classes[1] if len(classes) > 1 else "positive",
                table["label"].to_numpy(),
                scores[:, 0],
            )
        ]
    elif kind == "multilabel":
        for place, name in enumerate(classes[:MOST_CURVES]):
            truth = table[f"label_{place}"].to_numpy()
            known = ~np.isnan(truth)
            named.append((name, truth[known], scores[known, place]))
    else:
        label = table["label"].to_numpy()
        common = np.argsort(-np.bincount(label, minlength=len(classes)), kind="stable")
        for place in common[:MOST_CURVES]:
            named.append((classes[place], (label == place).astype(int), scores[:, place]))
    roc = [(n, list(zip(*roc_curve(y, s), strict=True))) for n, y, s in named if len(y)]
    pr = [(n, list(zip(*pr_curve(y, s), strict=True))) for n, y, s in named if len(y)]
    note = (
        "" if len(named) == 1 or len(classes) <= MOST_CURVES else f", the {MOST_CURVES} commonest"
    )
    return [
        plots.lines(
            roc, x="false positive rate", y="sensitivity", diagonal=True,
            label=f"ROC on test{note}",
        ),
        plots.lines(pr, x="recall", y="precision", label=f"Precision and recall on test{note}"),
    ]  # fmt: skip


def _confusion(kind: str, classes: list[str], table: pd.DataFrame | None) -> Any:
    if table is None or not len(table) or kind not in ("binary", "multiclass", "ordinal"):
        return None
    scores = _scores(table)
    counts = confusion_table(
        kind, table["label"].to_numpy(), scores[:, 0] if kind == "binary" else scores
    )
    totals = counts.sum(axis=1)
    return [
        {
            "name": name,
            "total": int(total),
            "cells": [
                {"count": int(c), "share": round(float(c) / total, 3) if total else 0.0}
                for c in row
            ],
        }
        for name, row, total in zip(classes, counts, totals, strict=True)
    ]


def _calibration(run: Run) -> Any:
    found = _json(run, "calibration.json")
    if found is None:
        return None
    series = [
        (
            f"{when} (ECE {found[when]['ece']['value']:.3f})",
            [(p["confidence"], p["accuracy"]) for p in found["curve"][when]],
        )
        for when in ("before", "after")
    ]
    found["plot"] = plots.lines(
        series, x="confidence", y="accuracy", diagonal=True,
        label=f"Reliability before and after temperature {found['temperature']:.2f}",
    )  # fmt: skip
    return found


def _samples(run: Run, name: str) -> list[Any]:
    found = _json(run, f"{name}.json") or []
    for sample in found:
        shown = sample["input"]
        shown["data"] = [png_of(run.path / Path(shown[k])) for k in ("png", "heat") if k in shown]
    return found
