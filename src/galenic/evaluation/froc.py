"""Free-response curves: lesions found against false alarms an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from galenic.evaluation.detection import Matched

Array = np.ndarray[Any, np.dtype[Any]]
# False alarms an image of the LUNA16 challenge (Setio et al., Medical Image Analysis 2017).
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def froc(matched: Matched, weights: Array, rates: tuple[float, ...] = RATES) -> Array:
    """Share of the boxes found at a mean number of false alarms an image.

    A box is found where a detection of its class overlaps it by a half. Beyond the last detection
    the curve goes on level.

    Args:
        matched: Detections and what they hit.
        weights: How often each image is counted [R, images].
        rates: False alarms an image.

    Returns:
        [R, len(rates)]; NaN where there is no box.
    """
    order = np.argsort(-matched.score, kind="stable")
    score, hit = matched.score[order], matched.hit[0, 0, order]
    weight = weights[:, matched.image[order]].astype(float)
    targets = weights.astype(float) @ matched.targets[0].sum(axis=1)
    images = np.maximum(weights.sum(axis=1, dtype=float), 1)
    # A threshold takes all detections of one score or none.
    ends = np.flatnonzero(np.r_[score[1:] != score[:-1], True][: len(score)])
    right = np.cumsum(weight * hit, axis=1)[:, ends]
    wrong = np.cumsum(weight * ~hit, axis=1)[:, ends] / images[:, None]
    found = [np.where(wrong <= rate + 1e-12, right, 0.0).max(axis=1, initial=0.0) for rate in rates]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.stack(found, axis=1) / targets[:, None]
    return np.where(targets[:, None] > 0, shares, np.nan)
