"""COCO's average precision and the free-response curve, against slow loops and pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from galenic.core.errors import DataError
from galenic.data.boxes import Found, Truth
from galenic.evaluation.detection import NAMES, RECALLS, THRESHOLDS, coco, match
from galenic.evaluation.froc import froc

IMAGES, CLASSES = 40, 3


def scene(seed: int, *, whole: bool = False, images: int = IMAGES) -> tuple[Truth, Found]:
    """Boxes, detections near them and far from them; scores and, if `whole`, overlaps with ties."""
    draw = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), draw.integers(0, 7, images))
    corners = _boxes(draw, len(image))
    kinds = draw.integers(0, CLASSES, len(image))
    near = np.repeat(np.arange(len(image)), draw.integers(0, 4, len(image)))
    moved = corners[near] + draw.normal(0, 5, (len(near), 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    extra = draw.integers(0, images, 60)
    boxes = np.concatenate([moved, _boxes(draw, 60)])
    if whole:
        corners, boxes = (
            np.round(corners / 8) * 8 + [0, 0, 8, 8],
            np.round(boxes / 8) * 8 + [0, 0, 8, 8],
        )
    classes = np.r_[kinds[near], draw.integers(0, CLASSES, 60)]
    score = draw.random(len(boxes)).round(1 if whole else 3)
    return Truth(image, corners, kinds), Found(np.r_[image[near], extra], boxes, classes, score)


def _boxes(draw: np.random.Generator, count: int) -> np.ndarray:
    low = draw.uniform(0, 200, (count, 2))
    return np.c_[low, low + np.exp(draw.uniform(np.log(8), np.log(160), (count, 2)))]


def figures(truth: Truth, found: Found, images: int = IMAGES) -> np.ndarray:
    return coco(match(truth, found, images, CLASSES), np.ones((1, images)))[0]


@pytest.mark.parametrize("whole", [False, True], ids=["measured", "with ties"])
@pytest.mark.parametrize("seed", range(6))
def test_the_figures_are_those_of_pycocotools(seed: int, whole: bool) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = scene(seed, whole=whole)

    def xywh(box: np.ndarray) -> list[float]:
        return [float(v) for v in (*box[:2], *(box[2:] - box[:2]))]

    with contextlib.redirect_stdout(io.StringIO()):
        target = COCO()
        target.dataset = {
            "images": [{"id": image} for image in range(IMAGES)],
            "categories": [{"id": kind} for kind in range(CLASSES)],
            "annotations": [
                {"id": n + 1, "image_id": int(i), "category_id": int(k), "bbox": xywh(b),
                 "area": xywh(b)[2] * xywh(b)[3], "iscrowd": 0}
                for n, (i, b, k) in enumerate(
                    zip(truth.image, truth.corners, truth.classes, strict=True)
                )
            ],
        }  # fmt: skip
        target.createIndex()
        rows = zip(found.image, found.corners, found.classes, found.score, strict=True)
        results = target.loadRes(
            [
                {"image_id": int(i), "category_id": int(k), "bbox": xywh(b), "score": float(s)}
                for i, b, k, s in rows
            ]
        )
        evaluation = COCOeval(target, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = np.array(evaluation.stats)[[0, 1, 2, 3, 4, 5, 8]]
    np.testing.assert_allclose(figures(truth, found), expected, atol=1e-6)


def test_a_box_of_the_range_comes_before_a_better_one_outside() -> None:
    # The detection overlaps the large box most and the small one enough: of small boxes it is a hit.
    truth = Truth(
        np.zeros(2, int), np.array([[0, 0, 34, 34], [0, 0, 31, 31]], float), np.zeros(2, int)
    )
    found = Found(np.zeros(1, int), np.array([[0, 0, 34, 33]], float), np.zeros(1, int), np.ones(1))
    known = dict(zip(NAMES, figures(truth, found, images=1), strict=True))
    assert known["map_small"] > 0.7 and known["map_medium"] == pytest.approx(1.0)
    # Both at once are never hit: one detection takes one box.
    assert known["recall_100"] == pytest.approx(0.5)


def slow_precision(truth: Truth, found: Found, threshold: float, kind: int) -> float:
    """Average precision of one class, image by image and detection by detection."""
    ours = np.flatnonzero(found.classes == kind)
    total = int((truth.classes == kind).sum())
    taken: set[int] = set()
    right = []
    for d in sorted(ours, key=lambda d: -found.score[d]):
        best, chosen = threshold, None
        for g in np.flatnonzero((truth.image == found.image[d]) & (truth.classes == kind)):
            a, b = found.corners[d], truth.corners[g]
            sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
            shared = max(sides[0], 0) * max(sides[1], 0)
            sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
            iou = shared / (sum(sizes) - shared)
            if g not in taken and iou >= best:
                best, chosen = iou, g
        right.append(chosen is not None)
        taken |= {chosen} if chosen is not None else set()
    hits = np.cumsum(right)
    precision, recall = hits / (np.arange(len(right)) + 1), hits / total
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in RECALLS]))


def test_average_precision_is_that_of_a_slow_loop() -> None:
    truth, found = scene(11)
    slow = [
        slow_precision(truth, found, threshold, kind)
        for threshold in THRESHOLDS
        for kind in range(CLASSES)
    ]
    assert figures(truth, found)[0] == pytest.approx(np.mean(slow), abs=1e-9)


def test_perfect_and_empty_detections() -> None:
    truth, _ = scene(2)
    perfect = Found(truth.image, truth.corners, truth.classes, np.ones(len(truth.image)))
    known = dict(zip(NAMES, figures(truth, perfect), strict=True))
    assert all(value == pytest.approx(1) for value in known.values())
    none = Found(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert figures(truth, none)[:3].tolist() == [0, 0, 0]
    empty = Truth(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int))
    assert np.isnan(figures(empty, perfect)).all()


@pytest.mark.parametrize("rounds", [1, 9], ids=["few", "many"])
def test_a_weight_is_a_copy_of_the_image(rounds: int) -> None:
    truth, found = scene(5)
    counts = np.random.default_rng(0).integers(0, 3, (rounds, IMAGES))
    matched = match(truth, found, IMAGES, CLASSES)
    together, curve = coco(matched, counts), froc(matched, counts)
    for weights, row, shares in zip(counts, together, curve, strict=True):
        copies = np.repeat(np.arange(IMAGES), weights)

        def copied(part, copies=copies):
            places = [
                (n, i)
                for n, image in enumerate(copies)
                for i in np.flatnonzero(part.image == image)
            ]
            new, old = np.array(places).T
            fields = [getattr(part, f) for f in part.__dataclass_fields__ if f != "image"]
            return type(part)(new, *(field[old] for field in fields))

        again = match(copied(truth), copied(found), len(copies), CLASSES)
        ones = np.ones((1, len(copies)))
        # Equal scores of copies are one step; all that is told agrees where scores are distinct.
        np.testing.assert_allclose(row[6], coco(again, ones)[0][6], atol=1e-12)
        np.testing.assert_allclose(row[:3], coco(again, ones)[0][:3], atol=0.02)
        np.testing.assert_allclose(shares, froc(again, ones)[0], atol=1e-12)


def test_the_free_response_curve_is_that_of_a_loop_over_thresholds() -> None:
    truth, found = scene(7, whole=True)
    matched = match(truth, found, IMAGES, CLASSES)
    rates = (0.1, 0.5, 1.0, 3.0)
    slow = []
    for rate in rates:
        best = 0.0
        for threshold in np.unique(found.score):
            taken = matched.score >= threshold
            alarms = (taken & ~matched.hit[0, 0]).sum() / IMAGES
            if alarms <= rate:
                best = max(best, (taken & matched.hit[0, 0]).sum() / len(truth.image))
        slow.append(best)
    np.testing.assert_allclose(froc(matched, np.ones((1, IMAGES)), rates)[0], slow)


def test_a_score_that_is_no_number_is_refused() -> None:
    truth, found = scene(0)
    found.score[3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        match(truth, found, IMAGES, CLASSES)
