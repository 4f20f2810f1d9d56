"""Boxes in other images, and which patients they make ill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from galenic.core.config import parse
from galenic.core.inputs import InputSpec
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.data.box_cohort import boxes_of, sizes_of
from galenic.data.boxes import Boxes
from galenic.data.cohort import Cohort
from galenic.objectives.detection import Detection
from galenic.pipeline.boxed import BoxRows, collate
from galenic.tasks import _detect_config, detect
from galenic.tasks._detect_results import (
    Judge,
    Part,
    coco_results,
    draw_some,
    figures_of,
    part_of,
    write_tables,
)
from galenic.tasks._predict_config import TABLE, Config
from galenic.tasks._predict_opening import cohort_of, network_of, note_origin

NO_BOXES = Boxes(np.empty((0, 4)), np.empty(0, np.int64))


def apply(config: Config, finished: Run, run: Run) -> int:
    """Predict and, where there are boxes, score; gives the number of parameters.

    Args:
        config: What was asked.
        finished: The run that was trained.
        run: Where it goes.
    """
    own = parse(_detect_config.Config, finished.config, str(finished.path))
    classes = tuple(finished.read_json("metrics.json")["classes"])
    threshold = float(finished.read_json("detection.json")["threshold"])
    cohort = cohort_of(config, finished, own.columns, "boxes", classes)
    sizes = sizes_of(cohort)
    boxes, lost = [NO_BOXES] * len(cohort), 0
    if cohort.label is not None:
        boxes, faults = boxes_of(cohort, sizes)
        lost = faults.lost
    detector, inputs = _opened(finished, own, classes, cohort, run)
    rows = np.arange(len(cohort))
    detections = predict(
        Detection(detector, own.detector.box_loss),
        BoxRows(cohort, rows, boxes, sizes, inputs),
        collate=collate,
        batch_size=config.batch_size or own.schedule.eval_batch_size,
    )["detections"]
    score = own.score.model_copy(update=config.score.model_dump(include={"resamples", "level"}))
    judge = Judge(cohort, boxes, classes, own.rule, score, config.seed)
    found = detect.found_in(detections, sizes, inputs, own.detector)
    # What is predicted does not depend on what is true.
    blind = replace(judge, rule=own.rule.model_copy(update={"min_iou": None}))
    part = part_of(blind, rows, found)
    run.write_text(TABLE, _table(part, threshold).to_csv(index=False))
    run.write_json("detections.json", coco_results(part))
    if cohort.label is not None:
        seen = part if own.rule.min_iou is None else part_of(judge, rows, found)
        _score(judge, seen, threshold, lost, run)
    return count_parameters(detector)[1]


def _opened(
    finished: Run,
    own: _detect_config.Config,
    classes: tuple[str, ...],
    cohort: Cohort,
    run: Run,
) -> tuple[nn.Module, InputSpec]:
    """The detector as the run left it, and what it reads."""
    if own.detector.kind == "fcos":
        backbone, _ = network_of(finished, own, cohort, run)
        detector: nn.Module = detect.fcos_on(backbone, own.detector, len(classes))
        return detect.restored(detector, finished), backbone.inputs
    note_origin(finished, cohort, run)
    seed_everything(own.seed)
    detector, inputs = detect.transformers_of(own, classes, cohort, run)
    return detect.restored(detector, finished), inputs


def _table(part: Part, threshold: float) -> pd.DataFrame:
    """One row an image, in the order of the manifest, with what its patient is called."""
    place = np.searchsorted(part.codes, part.patients)
    surest = np.where(np.isfinite(part.patient_scores), part.patient_scores, np.nan)[place]
    counted = part.found.image[part.found.score >= threshold]
    return pd.DataFrame(
        {
            "row": part.rows,
            "boxes": np.bincount(counted, minlength=len(part.rows)),
            "score": part.scores,
            "patient_score": surest,
            "patient_called": (part.patient_scores >= threshold).astype(int)[place],
        }
    )


def _score(judge: Judge, part: Part, threshold: float, lost: int, run: Run) -> None:
    """Write every figure; the threshold is that of the run's own validation."""
    figures, told = figures_of(judge, part, threshold)
    main = "ptp_f1" if "ptp_f1" in figures else "map_50"
    scores: dict[str, Any] = {"kind": "boxes", "classes": list(judge.classes), "main": main}
    run.write_json("metrics.json", scores | {"test": figures})
    shown = draw_some(run, judge, part, threshold)
    more = {"tuned": "as in the run that was trained", "lost_boxes": lost, "shown": shown}
    run.write_json("detection.json", told | more)
    write_tables(run, {"test": part}, threshold)
