"""Average precision of boxes on 1,000 images: all images at once against pycocotools."""

from __future__ import annotations

import contextlib
import io
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.harness import alternate, write_result
from galenic.data.boxes import Found, Truth
from galenic.evaluation.detection import NAMES, coco, match

IMAGES, CLASSES, SIDE = 1_000, 3, 512


def data(seed: int = 0) -> tuple[Truth, Found]:
    """Boxes of all sizes, detections near and far from them, and scores with ties."""
    draw = np.random.default_rng(seed)
    image = np.repeat(np.arange(IMAGES), draw.integers(0, 12, IMAGES))
    corners = _boxes(draw, len(image))
    classes = draw.integers(0, CLASSES, len(image))
    near = np.repeat(np.arange(len(image)), draw.integers(0, 4, len(image)))
    moved = corners[near] + draw.normal(0, 6, (len(near), 4)).round(1)
    extra = draw.integers(0, IMAGES, 10 * IMAGES)
    boxes = np.concatenate([_tidy(moved), _boxes(draw, len(extra))])
    kinds = np.concatenate([classes[near], draw.integers(0, CLASSES, len(extra))])
    score = np.concatenate([draw.beta(4, 2, len(near)), draw.beta(2, 4, len(extra))]).round(3)
    return Truth(image, corners, classes), Found(np.r_[image[near], extra], boxes, kinds, score)


def _boxes(draw: np.random.Generator, count: int) -> np.ndarray:
    low = draw.uniform(0, SIDE - 10, (count, 2)).round(1)
    sides = np.exp(draw.uniform(np.log(6), np.log(250), (count, 2))).round(1)
    return np.concatenate([low, low + sides], axis=1)


def _tidy(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners[:, :2], np.maximum(corners[:, 2:], corners[:, :2] + 1)], axis=1)


def peer_figures(truth: Truth, found: Found) -> np.ndarray:
    """The same figures by pycocotools, in the order of :data:`NAMES`."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        target, results = _coco(truth, found)
        evaluation = COCOeval(target, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.array(evaluation.stats)[[0, 1, 2, 3, 4, 5, 8]]


def _coco(truth: Truth, found: Found) -> tuple[Any, Any]:
    from pycocotools.coco import COCO

    target = COCO()
    target.dataset = {
        "images": [{"id": image, "width": SIDE, "height": SIDE} for image in range(IMAGES)],
        "categories": [{"id": kind, "name": str(kind)} for kind in range(CLASSES)],
        "annotations": [
            {
                "id": place + 1, "image_id": int(image), "category_id": int(kind),
                "bbox": _xywh(box), "area": _xywh(box)[2] * _xywh(box)[3], "iscrowd": 0,
            }
            for place, (image, box, kind) in enumerate(
                zip(truth.image, truth.corners, truth.classes, strict=True)
            )
        ],
    }  # fmt: skip
    target.createIndex()
    rows = zip(found.image, found.corners, found.classes, found.score, strict=True)
    return target, target.loadRes(
        [
            {"image_id": int(i), "category_id": int(k), "bbox": _xywh(box), "score": float(s)}
            for i, box, k, s in rows
        ]
    )


def _xywh(box: np.ndarray) -> list[float]:
    return [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]


def main() -> None:
    """Measure, check that both sides give the same figures, write the result."""
    truth, found = data()

    def ours() -> np.ndarray:
        return coco(match(truth, found, IMAGES, CLASSES), np.ones((1, IMAGES)))[0]

    gap = float(np.nanmax(np.abs(ours() - peer_figures(truth, found))))
    assert gap < 1e-6, f"the figures differ by {gap}"
    write_result(
        name="coco_map",
        unit="s",
        times=alternate(ours, lambda: peer_figures(truth, found)),
        peer={"name": "pycocotools", "version": version("pycocotools")},
        reach="at most 1.5",
        met=lambda ratio: ratio <= 1.5,
        same_result=f"{', '.join(NAMES)}: largest difference {gap:.1e}",
    )


if __name__ == "__main__":
    main()
