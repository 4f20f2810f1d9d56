"""What a segment run writes down: figures by structure and patient, masks, and overlays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn
from torch.utils.data import Subset

from galenic.core.prediction import predict
from galenic.evaluation.masks import MAIN, METRICS, compare, summarise
from galenic.pipeline import mask_files
from galenic.pipeline.inputs import Collate
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
        batch = job.config.schedule.eval_batch_size
        data = job.rows(part, masks=False)
        found = predicted(job.objective, data, rows, job.survey.shapes, batch)
        for place, codes in enumerate(found):
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
        tables.append(table_of(job.structures, part, rows, groups, values))
    job.run.write_json(
        "metrics.json", {"main": MAIN, "kind": "mask", "classes": job.structures, **metrics}
    )
    _write_structures(job, structures)
    table = pd.concat(tables, ignore_index=True)
    job.run.write_table("cases.parquet", table)
    job.run.write_json("overlays.json", _overlays(job, table))
    job.run.log({"event": "scored", MAIN: metrics["test"][MAIN]["value"]})


def predicted(
    objective: nn.Module,
    data: MaskedRows,
    rows: Array,
    shapes: Sequence[tuple[int, ...]],
    batch_size: int,
) -> Iterator[Array]:
    """Codes of each case, in its own size.

    Args:
        objective: Trained.
        data: The frames of the cases.
        rows: Of the cases, in the order of their frames.
        shapes: Of every row of the cohort.
        batch_size: Frames a batch.
    """
    ends = np.cumsum([0, *(int((data.frames.row == row).sum()) for row in rows)])
    for start in range(0, len(rows), CASES):
        stop = min(start + CASES, len(rows))
        part = Subset(data, range(int(ends[start]), int(ends[stop])))
        logits = predict(objective, part, collate=Collate(), batch_size=batch_size)["logits"]
        for place in range(start, stop):
            own = logits[ends[place] - ends[start] : ends[place + 1] - ends[start]]
            yield whole(own, shapes[int(rows[place])])


def table_of(
    structures: Sequence[str], part: str, rows: Array, groups: Array, values: Array
) -> pd.DataFrame:
    """One row a case: its figures [structures, metrics] beside row, patient and part."""
    columns: dict[str, Any] = {"row": rows, "group": groups, "split": part}
    for k in range(len(structures)):
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
