"""What a segment run writes down: figures by structure and patient, masks, and overlays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch.utils.data import Subset

from galenic.core.prediction import predict
from galenic.evaluation.masks import MAIN, METRICS, compare, summarise
from galenic.pipeline import mask_files
from galenic.pipeline.masked import MaskedRows, whole

if TYPE_CHECKING:
    from galenic.tasks.segment import Job

Array = np.ndarray[Any, np.dtype[Any]]
# Cases that are predicted at a time; the logits of all would not fit.
CASES = 16
SHOWN = 8


def write_results(job: Job) -> None:
    """Predict and score validation and test; masks and overlays are those of test."""
    tables, metrics, structures = [], {}, {}
    for part, key in (("val", "validation"), ("test", "test")):
        rows = getattr(job.splits, part)
        values = np.empty((len(rows), len(job.structures), len(METRICS)))
        for place, codes in enumerate(_predicted(job, part)):
            row = int(rows[place])
            true, spacing = job.masks.codes(row), job.masks.spacing(row)
            values[place] = compare(codes, true, len(job.structures), spacing)
            if part == "test":
                mask_files.write(job.run, job.cohort, row, job.masks.values[codes])
        groups = job.cohort.patient_ids[rows]
        score = job.config.score
        mean, each = summarise(
            values, groups, resamples=score.resamples if part == "test" else 0,
            level=score.level, seed=job.config.seed,
        )  # fmt: skip
        metrics[key] = {name: figure.to_dict() for name, figure in mean.items()}
        structures[key] = [{name: figure.to_dict() for name, figure in own.items()} for own in each]
        tables.append(_table(job, part, rows, groups, values))
    job.run.write_json(
        "metrics.json", {"main": MAIN, "kind": "mask", "classes": job.structures, **metrics}
    )
    _write_structures(job, structures)
    table = pd.concat(tables, ignore_index=True)
    job.run.write_table("cases.parquet", table)
    job.run.write_json("overlays.json", _overlays(job, table))
    job.run.log({"event": "scored", MAIN: metrics["test"][MAIN]["value"]})


def _predicted(job: Job, part: str) -> Iterator[Array]:
    """Codes of each case of a part, in its own size."""
    rows, data = getattr(job.splits, part), job.rows(part, masks=False)
    ends = np.cumsum([0, *(int((data.frames.row == row).sum()) for row in rows)])
    for start in range(0, len(rows), CASES):
        stop = min(start + CASES, len(rows))
        logits = _logits(job, data, int(ends[start]), int(ends[stop]))
        for place in range(start, stop):
            own = logits[ends[place] - ends[start] : ends[place + 1] - ends[start]]
            yield whole(own, job.survey.shapes[int(rows[place])])


def _logits(job: Job, data: MaskedRows, start: int, stop: int) -> Array:
    found = predict(
        job.objective,
        Subset(data, range(start, stop)),
        collate=job.collate,
        batch_size=job.config.schedule.eval_batch_size,
    )
    return found["logits"]


def _table(job: Job, part: str, rows: Array, groups: Array, values: Array) -> pd.DataFrame:
    columns: dict[str, Any] = {"row": rows, "group": groups, "split": part}
    for k in range(len(job.structures)):
        columns |= {f"{name}_{k}": values[:, k, place] for place, name in enumerate(METRICS)}
    return pd.DataFrame(columns)


def _write_structures(job: Job, figures: dict[str, list[Any]]) -> None:
    test = job.splits.test
    found = []
    for place, (name, value) in enumerate(zip(job.structures, job.survey.values, strict=True)):
        cases = [int(row) for row in test if value in job.survey.held[int(row)]]
        patients = len(np.unique(job.cohort.patient_ids[cases])) if cases else 0
        counts = {"name": name, "value": value, "cases": len(cases), "patients": patients}
        found.append(counts | {key: rows[place] for key, rows in figures.items()})
    faults = job.survey.faults
    left = {"missing": len(faults.missing), "empty": len(faults.empty)}
    job.run.write_json("structures.json", {"structures": found, **left})


def _overlays(job: Job, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Pictures of some test cases, from the worst to the best."""
    test = table[table["split"] == "test"]
    dice = test.filter(regex=rf"^{MAIN}_\d+$").mean(axis=1)
    rows = test["row"].astype(int)
    order = dice.sort_values(kind="stable").dropna().index
    places = np.unique(np.linspace(0, len(order) - 1, SHOWN).round().astype(int))
    return [
        mask_files.overlay(
            job.run, job.cohort, int(rows[index]), job.masks,
            f"Dice {dice[index]:.2f}",
        )
        for index in (order[places] if len(order) else [])
    ]  # fmt: skip
