"""What a detect run writes down: figures by box, slice and patient, and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galenic.data.boxes import Found, Truth
from galenic.data.manifest import require_column
from galenic.evaluation import operating
from galenic.evaluation.bootstrap import Estimate, estimates
from galenic.evaluation.detection import NAMES, OF_CLASS, Matched, coco_by_class, match, overlap
from galenic.evaluation.froc import RATES, froc
from galenic.evaluation.patients import patient_scores, ptp, tuned_threshold
from galenic.pipeline.boxed import truth_of
from galenic.pipeline.overlays import draw

if TYPE_CHECKING:
    from galenic.tasks.detect import Job

Array = np.ndarray[Any, np.dtype[Any]]
# Where neither the user nor validation gives a threshold.
HALF = 0.5
# Pictures of each kind in the report.
EACH = 4


@dataclass(frozen=True)
class Part:
    """Validation or test, with what was found in it.

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
    parts = {part: _part(job, part, found[part]) for part in found}
    threshold, tuned = _threshold(job, parts["val"])
    document: dict[str, Any] = {"kind": "boxes", "classes": list(job.classes)}
    for part, key, resamples in (
        ("val", "validation", 0),
        ("test", "test", job.config.score.resamples),
    ):
        boxes = _box_figures(job, parts[part], threshold, resamples)
        figures, patients = _patient_figures(job, parts[part], threshold, resamples)
        document[key] = {name: f.to_dict() for name, f in (boxes.whole | figures).items()}
    test = parts["test"]
    both = all("ptp_f1" in document[key] for key in ("validation", "test"))
    document["main"] = "ptp_f1" if both else "map_50"
    job.run.write_json("metrics.json", document)
    chosen = _chosen(test.matched, threshold)
    shown = draw(job.run, job.cohort, test.rows, chosen, test.truth, test.found, threshold)
    job.run.write_json(
        "detection.json",
        {
            "classes": boxes.classes,
            "froc": boxes.froc,
            "threshold": threshold,
            "tuned": tuned,
            "rule": job.config.rule.model_dump(),
            "patients": patients,
            "lost_boxes": job.faults.lost,
            "shown": shown,
        },
    )
    job.run.write_json("detections.json", _coco_results(test))
    job.run.write_table("slices.parquet", pd.concat([_slices(p, n) for n, p in parts.items()]))
    job.run.write_table(
        "patients.parquet",
        pd.concat([_patients(job, p, n, threshold) for n, p in parts.items()]),
    )
    job.run.log({"event": "scored", document["main"]: document["test"][document["main"]]["value"]})


def _part(job: Job, part: str, found: Found) -> Part:
    rows = getattr(job.splits, part)
    rule, patients, truth = job.config.rule, job.cohort.patient_ids[rows], truth_of(job.boxes, rows)
    ill = job.positive[rows]
    scores = np.zeros(len(rows))
    np.maximum.at(scores, found.image, found.score)
    codes = np.unique(patients)
    patient_ill = np.isin(codes, patients[ill])
    counted = scores
    if rule.min_iou is not None:
        counted = _localised(truth, found, rule.min_iou, scores, np.isin(patients, patients[ill]))
    order = _order(job, rows)
    return Part(
        rows,
        patients,
        truth,
        found,
        match(truth, found, len(rows), len(job.classes)),
        ill,
        scores,
        codes,
        patient_ill.astype(int),
        patient_scores(counted[order], patients[order], rule),
    )


def _order(job: Job, rows: Array) -> Array:
    column = job.config.rule.order
    if column is None:
        return np.arange(len(rows))
    require_column(column, job.cohort.table.columns)
    return job.cohort.table[column].iloc[rows].reset_index(drop=True).argsort().to_numpy()


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


def _threshold(job: Job, part: Part) -> tuple[float, str]:
    """The score from which a slice counts, and where it comes from."""
    if job.config.rule.threshold is not None:
        return job.config.rule.threshold, "given"
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


def _box_figures(job: Job, part: Part, threshold: float, resamples: int) -> BoxFigures:
    names = (*NAMES, "froc", *(f"slice_{name}" for name in ("recall", "precision", "f1")))

    def metric(weights: Array) -> Array:
        whole, each = coco_by_class(part.matched, weights)
        curve = froc(part.matched, weights)
        rates = operating.rates(part.ill.astype(int), part.scores, threshold, weights)
        parts = [whole, curve.mean(axis=1, keepdims=True), rates[:, [0, 2, 4]], curve]
        return np.concatenate([*parts, each.reshape(len(weights), -1)], axis=1)

    score = job.config.score
    found = iter(
        estimates(
            metric, part.patients, resamples=resamples, level=score.level, seed=job.config.seed
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
        for kind, name in enumerate(job.classes)
    ]
    return BoxFigures(whole, classes, curve)


def _patient_figures(
    job: Job, part: Part, threshold: float, resamples: int
) -> tuple[dict[str, Estimate], dict[str, Any] | None]:
    """Figures of the patients and what is told of them; none where one kind is not there."""
    if len(np.unique(part.patient_ill)) < 2:
        return {}, None
    score = job.config.score
    figures, told = ptp(
        part.patient_ill,
        part.patient_scores,
        threshold,
        resamples=resamples,
        level=score.level,
        seed=job.config.seed,
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


def _coco_results(part: Part) -> list[dict[str, Any]]:
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


def _patients(job: Job, part: Part, name: str, threshold: float) -> pd.DataFrame:
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
