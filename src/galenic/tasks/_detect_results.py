"""What a detect run writes down: figures by box, slice and patient, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galenic.core.run import Run
from galenic.data.boxes import Boxes, Found, Truth
from galenic.data.cohort import Cohort
from galenic.data.manifest import require_column
from galenic.evaluation import operating
from galenic.evaluation.bootstrap import Estimate, estimates
from galenic.evaluation.detection import NAMES, OF_CLASS, Matched, coco_by_class, match, overlap
from galenic.evaluation.froc import RATES, froc
from galenic.evaluation.patients import PatientRule, patient_scores, ptp, tuned_threshold
from galenic.pipeline.boxed import truth_of
from galenic.pipeline.overlays import draw
from galenic.tasks._detect_config import DetectionScore

if TYPE_CHECKING:
    from galenic.tasks.detect import Job

Array = np.ndarray[Any, np.dtype[Any]]
# Where neither the user nor validation gives a threshold.
HALF = 0.5
# Pictures of each kind in the report.
EACH = 4


@dataclass(frozen=True)
class Judge:
    """What detections are judged by.

    Attributes:
        cohort: The images.
        boxes: True ones, of every row of the cohort.
        classes: Names of their classes.
        rule: When a patient is called ill.
        score: How figures are taken.
        seed: Of the bootstrap.
    """

    cohort: Cohort
    boxes: Sequence[Boxes]
    classes: tuple[str, ...]
    rule: PatientRule
    score: DetectionScore
    seed: int


@dataclass(frozen=True)
class Part:
    """Some images, such as those of validation or test, with what was found in them.

    Attributes:
        rows: Of the cohort [n].
        patients: Of each image [n].
        truth: True boxes.
        found: Detections.
        matched: The two together.
        ill: Whether an image has a box [n].
        scores: Of the surest detection of each image [n].
        codes: Patients [P], in order.
        patient_ill: Whether a patient has a box [P].
        patient_scores: Highest threshold at which a patient is called ill [P].
    """

    rows: Array
    patients: Array
    truth: Truth
    found: Found
    matched: Matched
    ill: Array
    scores: Array
    codes: Array
    patient_ill: Array
    patient_scores: Array


def write_results(job: Job, found: dict[str, Found]) -> None:
    """Score validation and test; thresholds are fixed on validation.

    Args:
        job: Whose run.
        found: Detections of `val` and `test`, in the pixels of their images.
    """
    config, run = job.config, job.run
    judge = Judge(job.cohort, job.boxes, job.classes, config.rule, config.score, config.seed)
    parts = {
        name: part_of(judge, getattr(job.splits, name), detections)
        for name, detections in found.items()
    }
    threshold, tuned = _threshold(judge.rule, parts["val"])
    plain = config.score.model_copy(update={"resamples": 0})
    validation, _ = figures_of(replace(judge, score=plain), parts["val"], threshold)
    test, document = figures_of(judge, parts["test"], threshold)
    main = "ptp_f1" if "ptp_f1" in validation.keys() & test.keys() else "map_50"
    scores = {"kind": "boxes", "classes": list(job.classes), "validation": validation}
    run.write_json("metrics.json", scores | {"test": test, "main": main})
    shown = draw_some(run, judge, parts["test"], threshold)
    told = {"tuned": tuned, "lost_boxes": job.faults.lost, "shown": shown}
    run.write_json("detection.json", document | told)
    run.write_json("detections.json", coco_results(parts["test"]))
    write_tables(run, parts, threshold)
    run.log({"event": "scored", main: test[main]["value"]})


def write_tables(run: Run, parts: Mapping[str, Part], threshold: float) -> None:
    """One row a slice and a patient of every part.

    Args:
        run: Where they go.
        parts: By name.
        threshold: Score from which a slice counts.
    """
    slices = [_slices(part, name) for name, part in parts.items()]
    patients = [_patients(part, name, threshold) for name, part in parts.items()]
    run.write_table("slices.parquet", pd.concat(slices))
    run.write_table("patients.parquet", pd.concat(patients))


def draw_some(run: Run, judge: Judge, part: Part, threshold: float) -> list[dict[str, Any]]:
    """Draw the images of a part that are worth a look; what is on each."""
    chosen = _chosen(part.matched, threshold)
    return draw(run, judge.cohort, part.rows, chosen, part.truth, part.found, threshold)


def figures_of(judge: Judge, part: Part, threshold: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every figure of a part by its name, and what `detection.json` says of it beside them."""
    boxes = _box_figures(judge, part, threshold)
    figures, patients = _patient_figures(judge, part, threshold)
    told = {
        "classes": boxes.classes,
        "froc": boxes.froc,
        "threshold": threshold,
        "rule": judge.rule.model_dump(),
        "patients": patients,
    }
    return {name: f.to_dict() for name, f in (boxes.whole | figures).items()}, told


def part_of(judge: Judge, rows: Array, found: Found) -> Part:
    """Hold what was found in the images of `rows` against what is in them."""
    rule, patients = judge.rule, judge.cohort.patient_ids[rows]
    truth = truth_of(judge.boxes, rows)
    ill = np.array([len(judge.boxes[row]) > 0 for row in rows], dtype=bool)
    scores = np.zeros(len(rows))
    np.maximum.at(scores, found.image, found.score)
    codes = np.unique(patients)
    patient_ill = np.isin(codes, patients[ill])
    counted = scores
    if rule.min_iou is not None:
        counted = _localised(truth, found, rule.min_iou, scores, np.isin(patients, patients[ill]))
    order = _order(judge, rows)
    return Part(
        rows,
        patients,
        truth,
        found,
        match(truth, found, len(rows), len(judge.classes)),
        ill,
        scores,
        codes,
        patient_ill.astype(int),
        patient_scores(counted[order], patients[order], rule),
    )


def _order(judge: Judge, rows: Array) -> Array:
    column = judge.rule.order
    if column is None:
        return np.arange(len(rows))
    require_column(column, judge.cohort.table.columns)
    return judge.cohort.table[column].iloc[rows].reset_index(drop=True).argsort().to_numpy()


def _localised(truth: Truth, found: Found, least: float, scores: Array, ill: Array) -> Array:
    """Slice scores in which a truly ill patient is only credited with boxes that hit."""
    hit = np.zeros(len(scores))
    for image in np.unique(truth.image):
        boxes, own = truth.corners[truth.image == image], found.image == image
        theirs = found.corners[own]
        iou = overlap(np.repeat(theirs, len(boxes), axis=0), np.tile(boxes, (len(theirs), 1)))
        near = (iou.reshape(len(theirs), len(boxes)) >= least).any(axis=1)
        hit[image] = found.score[own][near].max(initial=0.0)
    return np.where(ill, hit, scores)


def _threshold(rule: PatientRule, part: Part) -> tuple[float, str]:
    """The score from which a slice counts, and where it comes from."""
    if rule.threshold is not None:
        return rule.threshold, "given"
    best = tuned_threshold(part.patient_ill, part.patient_scores)
    if np.isnan(best):
        return HALF, "0.5: validation has patients of one kind only"
    return best, "Youden's, on validation patients"


@dataclass(frozen=True)
class BoxFigures:
    """Figures of the boxes of a part: of all, of each class, and at each rate of false alarms."""

    whole: dict[str, Estimate]
    classes: list[dict[str, Any]]
    froc: list[dict[str, Any]]


def _box_figures(judge: Judge, part: Part, threshold: float) -> BoxFigures:
    names = (*NAMES, "froc", *(f"slice_{name}" for name in ("recall", "precision", "f1")))

    def metric(weights: Array) -> Array:
        whole, each = coco_by_class(part.matched, weights)
        curve = froc(part.matched, weights)
        rates = operating.rates(part.ill.astype(int), part.scores, threshold, weights)
        parts = [whole, curve.mean(axis=1, keepdims=True), rates[:, [0, 2, 4]], curve]
        return np.concatenate([*parts, each.reshape(len(weights), -1)], axis=1)

    score = judge.score
    found = iter(
        estimates(
            metric,
            part.patients,
            resamples=score.resamples,
            level=score.level,
            seed=judge.seed,
        )
    )
    whole = {name: next(found) for name in names}
    curve = [{"rate": rate, **next(found).to_dict()} for rate in RATES]
    classes = [
        {
            "class": name,
            "boxes": int((part.truth.classes == kind).sum()),
            "images": len(np.unique(part.truth.image[part.truth.classes == kind])),
            **{figure: next(found).to_dict() for figure in OF_CLASS},
        }
        for kind, name in enumerate(judge.classes)
    ]
    return BoxFigures(whole, classes, curve)


def _patient_figures(
    judge: Judge, part: Part, threshold: float
) -> tuple[dict[str, Estimate], dict[str, Any] | None]:
    """Figures of the patients and what is told of them; none where one kind is not there."""
    if len(np.unique(part.patient_ill)) < 2:
        return {}, None
    score = judge.score
    figures, told = ptp(
        part.patient_ill,
        part.patient_scores,
        threshold,
        resamples=score.resamples,
        level=score.level,
        seed=judge.seed,
        prevalences=score.prevalences,
    )
    boxes = part.found.score >= threshold
    well = np.isin(part.patients, part.codes[part.patient_ill == 0])
    alarms = int((boxes & well[part.found.image]).sum())
    told["false_boxes_per_normal_patient"] = alarms / max(int((part.patient_ill == 0).sum()), 1)
    return figures, told


def _chosen(matched: Matched, threshold: float) -> list[tuple[int, str]]:
    """Images worth a look: those with most missed boxes, surest false alarms, surest hits.

    Args:
        matched: Detections and what they hit.
        threshold: Score from which a detection is shown.

    Returns:
        Image and reason, each image once.
    """
    images = matched.targets.shape[1]
    hit, shown = matched.hit[0, 0], matched.score >= threshold
    right = np.bincount(matched.image[hit & shown], minlength=images)
    missed = matched.targets[0].sum(axis=1) - right
    surest = np.zeros((2, images))
    for place, kind in enumerate((~hit & shown, hit & shown)):
        np.maximum.at(surest[place], matched.image[kind], matched.score[kind])
    found: dict[int, str] = {}
    for worth, reason in (
        (missed, "missed"), (surest[0], "false alarm"), (surest[1], "found"),
    ):  # fmt: skip
        order = np.argsort(-worth, kind="stable")
        fresh = [int(image) for image in order if worth[image] > 0 and int(image) not in found]
        found |= dict.fromkeys(fresh[:EACH], reason)
    return list(found.items())


def coco_results(part: Part) -> list[dict[str, Any]]:
    """Detections in COCO's layout of results; the image is the row of the manifest."""
    found = part.found
    sides = found.corners[:, 2:] - found.corners[:, :2]
    boxes = np.concatenate([found.corners[:, :2], sides], axis=1).round(2)
    return [
        {"image_id": int(row), "category_id": int(kind), "bbox": box, "score": float(score)}
        for row, kind, box, score in zip(
            part.rows[found.image], found.classes, boxes.tolist(), found.score, strict=True
        )
    ]


def _slices(part: Part, name: str) -> pd.DataFrame:
    columns = {"row": part.rows, "group": part.patients, "split": name}
    return pd.DataFrame({**columns, "label": part.ill.astype(int), "score": part.scores})


def _patients(part: Part, name: str, threshold: float) -> pd.DataFrame:
    """One row a patient, with the rows of the slices that count."""
    place = np.searchsorted(part.codes, part.patients)
    counted = part.scores >= threshold
    evidence = [
        " ".join(map(str, part.rows[(place == code) & counted])) for code in range(len(part.codes))
    ]
    return pd.DataFrame(
        {
            "group": part.codes,
            "split": name,
            "label": part.patient_ill,
            "score": np.where(np.isfinite(part.patient_scores), part.patient_scores, np.nan),
            "called": (part.patient_scores >= threshold).astype(int),
            "slices": np.bincount(place, minlength=len(part.codes)),
            "slices_with": np.bincount(place[part.ill], minlength=len(part.codes)),
            "evidence": evidence,
        }
    )
