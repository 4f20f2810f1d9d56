"""The page of a detector: boxes on their images, and figures by class, slice and patient."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from galenic.app.report import plots
from galenic.app.report.fitting import fit_plots
from galenic.app.report.read import frame, with_pictures
from galenic.core.config import dump_yaml
from galenic.core.run import Run


def read_detection(run: Run) -> dict[str, Any]:
    """Context of the page of a detect run."""
    scores, document = run.read_json("metrics.json"), run.read_json("detection.json")
    patients = pd.read_parquet(run.path / "patients.parquet")
    test = patients[patients["split"] == "test"].sort_values("score", ascending=False)
    fitted = (run.path / "splits.json").is_file()
    document["shown"] = with_pictures(run, document["shown"])
    return frame(run) | {
        "title": run.provenance.get("recipe", run.path.name),
        "backbone": run.provenance["weights"]["backbone"],
        "metrics": scores["test"],
        "main": scores["main"],
        "document": document,
        # A prediction splits nothing.
        "counts": run.read_json("splits.json")["prevalence"] if fitted else None,
        "cost": run.read_json("cost.json"),
        "table": test.to_dict("records"),
        "plots": [plot for plot in (_froc(document["froc"]), *fit_plots(run)) if plot],
        "config": dump_yaml(run.config),
    }


def _froc(points: list[dict[str, Any]]) -> Any:
    if any(point[key] is None for point in points for key in ("value", "low")):
        return None
    ticks = [(math.log2(point["rate"]), f"{point['rate']:g}") for point in points]
    series = [{**point, "at": math.log2(point["rate"])} for point in points]
    return plots.intervals(
        [("boxes found", series)], ticks, x="false alarms an image", y="share of the boxes",
        label="FROC on test images", joined=True,
    )  # fmt: skip
