"""Average precision of boxes as COCO defines it, all images at once.

The figures are those of `pycocotools` (Lin et al., ECCV 2014, and its code of 2014 to 2020) for
boxes without crowds: ten thresholds of overlap, 101 points of recall, four ranges of area, at most
100 detections of an image and class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from galenic.core.errors import DataError
from galenic.data.boxes import Found, Truth, areas

Array = np.ndarray[Any, np.dtype[Any]]
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
RANGES = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
MOST = 100
# From so many weightings on a dense product beats a sparse one.
FEW = 8


@dataclass(frozen=True)
class Matched:
    """Detections with what they hit, sorted by class, then by falling score.

    Attributes:
        image: Of each detection [n].
        classes: Of each detection [n].
        score: Of each detection [n].
        hit: Whether it hit a box of the area range, by range and threshold [A, T, n].
        ignored: Whether it counts for nothing [A, T, n].
        targets: True boxes in each range, by image and class [A, images, K].
    """

    image: Array
    classes: Array
    score: Array
    hit: Array
    ignored: Array
    targets: Array

    @cached_property
    def ranges(self) -> list[slice]:
        """Where each class lies."""
        edges = np.searchsorted(self.classes, np.arange(self.targets.shape[2] + 1))
        return [slice(low, high) for low, high in zip(edges[:-1], edges[1:], strict=True)]


def match(truth: Truth, found: Found, images: int, classes: int) -> Matched:
    """Match detections to boxes, image by image and class by class, the surest first.

    At each threshold a detection takes the free box that it overlaps most, one of the area range
    before one that is not; of equal ones the last.

    Args:
        truth: The boxes.
        found: The detections.
        images: How many images there are.
        classes: How many classes there are.

    Raises:
        DataError: If a score or a corner is not finite.
    """
    if not (np.isfinite(found.score).all() and np.isfinite(found.corners).all()):
        raise DataError("A detection has a score or a corner that is not finite.")
    found = _surest(found, classes)
    group = found.image * classes + found.classes
    hit, ignored = _greedy(truth, found, group, classes)
    order = np.lexsort((-found.score, found.classes))
    targets = np.zeros((len(RANGES), images, classes), np.int64)
    for place, inside in enumerate(~_outside(truth.corners)):
        np.add.at(targets[place], (truth.image[inside], truth.classes[inside]), 1)
    return Matched(
        found.image[order],
        found.classes[order],
        found.score[order],
        hit[..., order],
        ignored[..., order],
        targets,
    )


def _surest(found: Found, classes: int) -> Found:
    """At most 100 an image and class, by image, class and falling score."""
    group = found.image * classes + found.classes
    order = np.lexsort((-found.score, group))
    keep = order[_rank(group[order]) < MOST]
    return Found(found.image[keep], found.corners[keep], found.classes[keep], found.score[keep])


def _rank(group: Array) -> Array:
    """Number of each entry within its run of equal values."""
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.zeros(0, int)
    return np.arange(len(group)) - np.repeat(first, np.diff(np.r_[first, len(group)]))


def _outside(corners: Array) -> Array:
    """Whether boxes are outside each range of areas [A, n]."""
    area = areas(corners)
    return np.stack([(area < low) | (area > high) for low, high in RANGES.values()])


def _greedy(truth: Truth, found: Found, group: Array, classes: int) -> tuple[Array, Array]:
    """Hits and ignored ones [A, T, n] of detections that lie group by group, the surest first."""
    shape = (len(RANGES), len(THRESHOLDS), len(group))
    hit, missed = np.zeros(shape, bool), np.ones(shape, bool)
    first, other, iou = _pairs(truth, found, group, classes)
    outside = _outside(truth.corners)
    able = iou >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    taken = np.zeros((*shape[:2], len(truth.image)), bool)
    # Rounds: the surest of every group that overlaps something, then the second, and so on.
    turn = _turns(first, group)
    for number in range(int(turn.max(initial=-1)) + 1):
        now = np.flatnonzero(turn == number)
        free = able[:, now] & ~taken[:, :, other[now]]
        # One of the range comes before one that is not, whatever the overlap.
        worth = np.where(free, iou[now] + 2.0 * ~outside[:, None, other[now]], -1.0)
        edges = np.flatnonzero(np.r_[True, np.diff(first[now]) != 0])
        top = np.maximum.reduceat(worth, edges, axis=2)
        which = np.repeat(np.arange(len(edges)), np.diff(np.r_[edges, len(now)]))
        best = (worth == top[..., which]) & free
        # Of equal ones the last.
        last = np.where(best, np.arange(len(now)), -1)
        chosen = np.maximum.reduceat(last, edges, axis=2)
        a, t, g = np.nonzero(chosen >= 0)
        box, detection = other[now[chosen[a, t, g]]], first[now[edges[g]]]
        taken[a, t, box] = True
        missed[a, t, detection] = False
        hit[a, t, detection] = ~outside[a, box]
    ignored = ~hit & ~(missed & ~_outside(found.corners)[:, None])
    return hit, ignored


def _pairs(truth: Truth, found: Found, group: Array, classes: int) -> tuple[Array, Array, Array]:
    """Detection, box and overlap of every pair that overlaps by at least a half, in order."""
    theirs = truth.image * classes + truth.classes
    order = np.argsort(theirs, kind="stable")
    low, high = (np.searchsorted(theirs[order], group, side) for side in ("left", "right"))
    counts = high - low
    first = np.repeat(np.arange(len(group)), counts)
    within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    other = order[np.repeat(low, counts) + within]
    iou = overlap(found.corners[first], truth.corners[other])
    near = iou >= THRESHOLDS[0]
    return first[near], other[near], iou[near]


def _turns(first: Array, group: Array) -> Array:
    """Round of each pair: how many detections of its group come before its own."""
    distinct, place = np.unique(first, return_inverse=True)
    return _rank(group[distinct])[place] if len(distinct) else place


def overlap(a: Array, b: Array) -> Array:
    """Intersection over union [n] of boxes pair by pair [n, 4]."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    whole = areas(a) + areas(b) - shared
    return np.where(whole > 0, shared / np.where(whole > 0, whole, 1), 0.0)


def precisions(matched: Matched, weights: Array, area: int = 0) -> Array:
    """Average precision by threshold and class under weights of the images.

    Args:
        matched: Detections and what they hit.
        weights: How often each image is counted [R, images].
        area: Which range of areas.

    Returns:
        [R, T, K]; NaN where no image of positive weight has a box of the class.
    """
    rounds, kinds = len(weights), matched.targets.shape[2]
    targets = weights.astype(float) @ matched.targets[area]
    found = np.full((rounds, len(THRESHOLDS), kinds), np.nan)
    for kind, part in enumerate(matched.ranges):
        known = targets[:, kind] > 0
        if not known.any():
            continue
        for place in range(len(THRESHOLDS)):
            counted = ~matched.ignored[area, place, part]
            hit = matched.hit[area, place, part][counted]
            image = matched.image[part][counted]
            found[known, place, kind] = _average(hit, image, weights[known], targets[known, kind])
    return found


def _average(hit: Array, image: Array, weights: Array, targets: Array) -> Array:
    """Mean precision at 101 recalls [R], of detections [n] from the surest on.

    Precision is highest right after a hit, so that only the hits are walked through; what was
    wrong since the hit before is added up image by image.
    """
    places = np.flatnonzero(hit)
    precision = np.zeros((len(weights), len(places) + 1))
    if not len(places):
        return precision[:, 0]
    segment = np.searchsorted(places, np.arange(places[-1] + 1))
    shape = weights.shape[1], len(places)
    since = csr_array((np.ones(len(segment)), (image[: len(segment)], segment)), shape=shape)
    counts = weights.astype(float)
    total = np.cumsum(counts @ (since if len(counts) < FEW else since.toarray()), axis=1)
    right = np.cumsum(counts[:, image[places]], axis=1)
    reached = right / targets[:, None]
    share = right / np.maximum(total, np.spacing(1.0))
    precision[:, :-1] = np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]
    first = np.stack([np.searchsorted(row, RECALLS, side="left") for row in reached])
    return np.take_along_axis(precision, first, axis=1).mean(axis=1)


def recalls(matched: Matched, weights: Array) -> Array:
    """Share of the boxes of each class found, with all detections [R, T, K]; NaN without boxes."""
    counts = weights.astype(float)
    targets = counts @ matched.targets[0]
    found = np.zeros((len(weights), len(THRESHOLDS), targets.shape[1]))
    for kind, part in enumerate(matched.ranges):
        for place in range(len(THRESHOLDS)):
            image = matched.image[part][matched.hit[0, place, part]]
            found[:, place, kind] = counts @ np.bincount(image, minlength=weights.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(targets[:, None] > 0, found / targets[:, None], np.nan)


NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "recall_100")
OF_CLASS = ("ap", "ap_50", "recall_50")


def coco(matched: Matched, weights: Array) -> Array:
    """The figures of :data:`NAMES` under weights of the images [R, images]: [R, 7].

    A mean over the classes that have boxes, NaN where none has.
    """
    return coco_by_class(matched, weights)[0]


def coco_by_class(matched: Matched, weights: Array) -> tuple[Array, Array]:
    """What :func:`coco` gives, and the figures of :data:`OF_CLASS` of each class [R, K, 3]."""
    precision, recall = precisions(matched, weights), recalls(matched, weights)
    columns = [precision, precision[:, :1], precision[:, 5:6]]
    columns += [precisions(matched, weights, area) for area in (1, 2, 3)]
    columns.append(recall)
    means = [_mean(values.reshape(len(weights), -1)) for values in columns]
    each = np.stack([precision.mean(axis=1), precision[:, 0], recall[:, 0]], axis=2)
    return np.stack(means, axis=1), each


def _mean(values: Array) -> Array:
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
