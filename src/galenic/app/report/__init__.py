"""The report: one HTML file that opens offline, from nothing but a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from galenic.core.files import atomic_write
from galenic.core.run import Run
from galenic.evaluation.metrics import greater_is_better


def write(path: Path) -> Path:
    """Write `report.html` (and the model card of a single run) into a folder.

    Args:
        path: A run folder, a comparison, a learning curve, sites held out, or merged runs.

    Raises:
        RunError: If it is none of them.
    """
    from galenic.app.report.control import read_control
    from galenic.app.report.detection import read_detection
    from galenic.app.report.grid import read_curve, read_sites
    from galenic.app.report.modelcard import write_card
    from galenic.app.report.read import read_comparison, read_run
    from galenic.app.report.sweep import read_merged, read_sweep

    run = Run.open(path)
    template = "report.html.j2"
    if (run.path / "curve.json").is_file():
        context, template = read_curve(run), "grid.html.j2"
    elif (run.path / "sites.json").is_file():
        context, template = read_sites(run), "grid.html.j2"
    elif (run.path / "leaderboard.json").is_file():
        context = read_comparison(run)
    elif (run.path / "trajectories.parquet").is_file():
        context, template = read_control(run), "control.html.j2"
    elif (run.path / "detection.json").is_file():
        context, template = read_detection(run), "detection.html.j2"
    elif run.provenance.get("task") == "merged" and (run.path / "sweep.json").is_file():
        context, template = read_merged(run), "sweep.html.j2"
    else:
        context = read_run(run) | {"sweep": read_sweep(run)}
        if run.provenance.get("task") != "predict":
            # A prediction made no model: that one's card lies with its run.
            write_card(run)
    target = run.path / "report.html"
    atomic_write(target, _environment().get_template(template).render(**context))
    return target


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("galenic.app.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.filters["words"] = words
    environment.filters["percent"] = percent
    environment.globals["greater_is_better"] = greater_is_better
    return environment


def figure(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share, with as many digits as it takes to see it."""
    if value is None:
        return "–"
    return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.2%}"


SHORT = {"auroc": "AUROC", "auprc": "AUPRC", "ece": "ECE", "mcc": "MCC", "r2": "R²", "iou": "IoU",
         "brier": "Brier score", "f1": "F1",
         "map": "mAP", "froc": "FROC", "dice": "Dice", "hd95": "HD95", "assd": "ASSD", "mae": "MAE",
         "rmse": "RMSE", "macro_f1": "macro F1", "quadratic_kappa": "quadratic kappa"}  # fmt: skip


def words(name: str) -> str:
    """A metric's or file's name as one writes it."""
    return SHORT.get(name) or " ".join(SHORT.get(part, part) for part in name.split("_"))
