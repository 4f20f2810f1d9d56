"""How alike two masks are, structure by structure, and over patients.

Definitions: Dice 2|A and B| / (|A| + |B|); IoU |A and B| / |A or B|; HD95 the larger of the two
95th percentiles of distances from one surface to the other; ASSD the mean of all those distances.
A surface is what one erosion (by faces) takes away. A structure that is in neither mask has no
figure; one that is in a single mask has overlap 0 and, for distances, the diagonal of the picture:
a miss is never left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from galenic.evaluation.bootstrap import Difference, Estimate, difference, estimates, resampled

Array = np.ndarray[Any, np.dtype[Any]]
METRICS = ("dice", "iou", "hd95", "assd")
MAIN = "dice"
PERCENTILE = 95


def compare(predicted: Array, true: Array, structures: int, spacing: Sequence[float]) -> Array:
    """Figures [structures, 4] of one case, in the order of `METRICS`; NaN where there are none.

    Args:
        predicted: Codes [H, W] or [D, H, W].
        true: The same.
        structures: Codes 1..structures are compared.
        spacing: Of the axes, in mm or pixels.
    """
    return np.array([_one(predicted == k, true == k, spacing) for k in range(1, structures + 1)])


def _one(ours: Array, true: Array, spacing: Sequence[float]) -> list[float]:
    both, ours_n, true_n = int((ours & true).sum()), int(ours.sum()), int(true.sum())
    if not ours_n + true_n:
        return [np.nan] * len(METRICS)
    dice, iou = 2 * both / (ours_n + true_n), both / (ours_n + true_n - both)
    if not ours_n or not true_n:
        worst = float(np.linalg.norm(np.multiply(ours.shape, spacing)))
        return [dice, iou, worst, worst]
    there, back = surface_distances(ours, true, spacing)
    hd95 = max(np.percentile(there, PERCENTILE), np.percentile(back, PERCENTILE))
    return [dice, iou, float(hd95), float(np.concatenate([there, back]).mean())]


def surface_distances(ours: Array, true: Array, spacing: Sequence[float]) -> tuple[Array, Array]:
    """Distances from each surface position of one mask to the surface of the other, both ways."""
    one, other = _surface(ours), _surface(true)
    return (
        ndimage.distance_transform_edt(~other, sampling=spacing)[one],
        ndimage.distance_transform_edt(~one, sampling=spacing)[other],
    )


def _surface(mask: Array) -> Array:
    return mask & ~ndimage.binary_erosion(mask)


def summarise(
    values: Array, groups: Array, *, resamples: int, level: float, seed: int
) -> tuple[dict[str, Estimate], list[dict[str, Estimate]]]:
    """Means of the structures' means over patients, and those of each structure.

    Args:
        values: Figures [cases, structures, 4].
        groups: Patient of each case.
        resamples: Bootstrap draws of patients.
        level: Of the intervals.
        seed: Of the draws.
    """

    def metric(counts: Array) -> Array:
        each = _means(values)(counts)
        return np.concatenate([_nanmean(each, 1), each.reshape(len(counts), -1)], axis=1)

    found = estimates(metric, groups, resamples=resamples, level=level, seed=seed)
    rows = [
        dict(zip(METRICS, found[start : start + len(METRICS)], strict=True))
        for start in range(0, len(found), len(METRICS))
    ]
    return rows[0], rows[1:]


def paired(
    ours: Array, theirs: Array, groups: Array, *, resamples: int, level: float, seed: int
) -> Difference:
    """Mean Dice of one model minus that of another, on the same resampled patients.

    Args:
        ours: Dice [cases, structures].
        theirs: Of the other, in the same order.
        groups: Patient of each case.
        resamples: Bootstrap draws.
        level: Of the interval.
        seed: Of the draws.
    """

    def gap(counts: Array) -> Array:
        means = [
            _nanmean(_means(values[..., None])(counts)[..., 0], 1) for values in (ours, theirs)
        ]
        return means[0] - means[1]

    value = float(gap(np.ones((1, len(ours))))[0])
    return difference(value, resampled(gap, groups, resamples, seed).reshape(-1), level)


def _means(values: Array) -> Any:
    """From counts [r, cases] to weighted means [r, structures, figures] of what is known."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)

    def metric(counts: Array) -> Array:
        weights = np.einsum("rn,nkm->rkm", counts.astype(float), known)
        sums = np.einsum("rn,nkm->rkm", counts.astype(float), filled)
        return np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)

    return metric


def _nanmean(values: Array, axis: int) -> Array:
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=axis)
    count = known.sum(axis=axis)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
