"""What a Lego run compares: each input alone, merged, fused, late, and with inputs missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from galenic.core.prediction import predict
from galenic.evaluation.metrics import MAIN, evaluate, greater_is_better, point
from galenic.evaluation.protocol import to_scores
from galenic.pipeline.lego import Modality
from galenic.pipeline.paired import PairedCollate, PairedRows
from galenic.pipeline.votes import logits_of

if TYPE_CHECKING:
    from galenic.tasks.lego import LegoJob

Array = np.ndarray[Any, np.dtype[Any]]
PARTS = ("val", "test")


@dataclass(frozen=True)
class Arm:
    """One way to predict.

    Attributes:
        name: `merged`, `fused`, `late`, `concat`, the name of an input, or `merged without INPUT`.
        role: `block`, `merged`, `fused`, `late`, `concat`, or `missing`.
        inputs: What it looks at.
        rows: Per part, the rows of the manifest that have one of these.
        logits: Per part, of these rows.
    """

    name: str
    role: str
    inputs: tuple[str, ...]
    rows: dict[str, Array]
    logits: dict[str, Array]


def arms(job: LegoJob) -> list[Arm]:
    """Every arm of a trained job, predicted."""
    every = job.modalities
    if job.concat is not None:
        return [_arm(job, "concat", "concat", job.concat, every)]
    found = [_arm(job, m.name, "block", job.merged.block(m.name), [m]) for m in every]
    blocks = list(found)
    models: list[tuple[str, nn.Module]] = [("merged", job.merged)]
    if job.fused is not None:
        models.append(("fused", job.fused))
    found += [_arm(job, name, name, model, every) for name, model in models]
    found.append(_late(job, blocks))
    if len(every) > 1:
        for name, model in models:
            for gone in every:
                left = [m for m in every if m is not gone]
                found.append(_arm(job, f"{name} without {gone.name}", "missing", model, left))
    return found


def chosen(job: LegoJob, found: list[Arm]) -> Arm:
    """The arm whose predictions are the run's; test is not looked at."""
    wanted = job.config.predict
    if wanted == "auto":
        wanted = "merged" if job.fused is None else "fused"
    if wanted != "best":
        return next(arm for arm in found if arm.name == wanted)
    kind, sign = job.label.kind, 1 if greater_is_better(MAIN[job.label.kind]) else -1

    def figure(arm: Arm) -> float:
        rows = arm.rows["val"]
        if not len(rows):
            return -np.inf
        scores = to_scores(kind, arm.logits["val"], (job.centre, job.spread))
        value = sign * point(kind, MAIN[kind], job.targets[rows], scores)
        return value if np.isfinite(value) else -np.inf

    return max((arm for arm in found if arm.role == "block"), key=figure)


def _arm(job: LegoJob, name: str, role: str, model: nn.Module, used: list[Modality]) -> Arm:
    objective = job.classifier(model, used)
    rows = {part: job.rows_of(used, getattr(job.splits, part)) for part in PARTS}
    logits = {}
    for part, found in rows.items():
        outputs = job.label.outputs
        shape = (0,) if outputs == 1 else (0, outputs)
        logits[part] = np.zeros(shape, np.float32)
        if len(found):
            logits[part] = predict(
                objective,
                PairedRows(used, found, job.targets),
                collate=PairedCollate(used),
                batch_size=job.config.schedule.eval_batch_size,
            )["logits"]
    return Arm(name, role, tuple(m.name for m in used), rows, logits)


def _late(job: LegoJob, blocks: list[Arm]) -> Arm:
    rows = {part: getattr(job.splits, part) for part in PARTS}
    logits = {
        part: late_logits(job.label.kind, every, [(b.rows[part], b.logits[part]) for b in blocks])
        for part, every in rows.items()
    }
    return Arm("late", "late", tuple(name for arm in blocks for name in arm.inputs), rows, logits)


def late_logits(kind: str, rows: Array, blocks: Sequence[tuple[Array, Array]]) -> Array:
    """The mean probability of the blocks that can say something; of a measure, the mean.

    Args:
        kind: Of the label.
        rows: Every row that is predicted.
        blocks: Of each block, the rows of these that it reads, and its logits of them.
    """
    total: Any = 0.0
    counts = np.zeros(len(rows))
    for own, logits in blocks:
        values = logits.astype(np.float64) if kind == "continuous" else to_scores(kind, logits)
        there = np.isin(rows, own)
        spread = np.zeros((len(rows), *values.shape[1:]))
        spread[there] = values
        total, counts = total + spread, counts + there
    mean = total / counts.reshape(-1, *[1] * (total.ndim - 1))
    return logits_of(kind, mean).astype(np.float32)


def report(job: LegoJob, found: list[Arm], main: str) -> dict[str, Any]:
    """What `lego.json` holds: the main metric of every arm, with its interval."""
    kind, config = job.label.kind, job.config.score
    metric = MAIN[kind]
    listed = []
    for arm in found:
        entry: dict[str, Any] = {"name": arm.name, "role": arm.role, "inputs": list(arm.inputs)}
        for part in PARTS:
            rows = arm.rows[part]
            entry[f"{part}_samples"] = len(rows)
            entry[part] = None
            if len(rows):
                estimates = evaluate(
                    kind,
                    job.targets[rows],
                    to_scores(kind, arm.logits[part], (job.centre, job.spread)),
                    job.cohort.patient_ids[rows],
                    names=[metric],
                    resamples=config.resamples,
                    level=config.level,
                    seed=job.config.seed,
                )
                entry[part] = estimates[metric].to_dict()
        listed.append(entry)
    return {
        "metric": metric,
        "predicts": main,
        "inputs": {m.name: m.kind for m in job.modalities},
        "weights": None if job.concat is not None else job.merged.weights,
        "arms": listed,
    }


def table(job: LegoJob, found: list[Arm]) -> pd.DataFrame:
    """One row an arm and test sample: `arm`, `row`, `group`, `score_0`, ..."""
    frames = []
    for arm in found:
        scores = to_scores(job.label.kind, arm.logits["test"], (job.centre, job.spread))
        wide = scores[:, None] if scores.ndim == 1 else scores
        rows = arm.rows["test"]
        columns: dict[str, Any] = {"arm": arm.name, "row": rows}
        columns["group"] = job.cohort.patient_ids[rows]
        columns |= {f"score_{c}": wide[:, c] for c in range(wide.shape[1])}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
