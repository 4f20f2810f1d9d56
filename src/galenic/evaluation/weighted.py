"""Metrics as functions of sample weights, many weightings at a time.

A bootstrap resample is a vector of counts. Every function here takes counts W [R, n], whole
numbers of any type, and gives one value a row, so that R resamples cost one pass over sorted
scores instead of R sorts. `numpy.nan` stands where a metric is not defined, such as an AUROC of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.sparse import csr_array

Array = np.ndarray[Any, np.dtype[Any]]
ECE_BINS = 15
# Numbers handled at a time: they stay in a core's cache through all that is done to them.
BLOCK = 60_000


def auroc(y: Array, scores: Array, weights: Array) -> Array:
    """Area under the ROC curve, ties counted half; y in {0, 1} [n].

    The rank sum of Mann and Whitney (1947): the weighted mid-ranks of the positives, less what
    the positives contribute among themselves.
    """
    areas = np.empty(len(weights))
    for rows, positive, every in _by_score(y, scores, weights):
        below = np.cumsum(every, axis=1, dtype=every.dtype)
        found = np.einsum("rn->r", positive).astype(np.float64)
        ranks = 2.0 * _dot(positive, below) - _dot(positive, every)
        with np.errstate(invalid="ignore", divide="ignore"):
            areas[rows] = (ranks - found**2) / (2 * found * (below[:, -1] - found))
    return areas


def average_precision(y: Array, scores: Array, weights: Array) -> Array:
    """Sum of precision times recall step, as scikit-learn has it; y in {0, 1} [n]."""
    values = np.empty(len(weights))
    for rows, positive, every in _by_score(y, scores, weights):
        step = positive[:, ::-1]
        found, named = np.cumsum(step, axis=1), np.cumsum(every[:, ::-1], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(named > 0, found / named, 0.0)
            values[rows] = _dot(step, precision) / found[:, -1]
    return values


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("rn,rn->r", a, b)


def _by_score(y: Array, scores: Array, weights: Array) -> Iterator[tuple[slice, Array, Array]]:
    """Weights of the positives and of all, a column a distinct score, ascending.

    Yields:
        A few rows at a time: which, and both arrays [r, m] of whole numbers.
    """
    order = np.argsort(scores, kind="stable")
    ordered, label = scores[order], y[order] == 1
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    dtype = _whole(weights)
    label = label.astype(dtype)
    step = max(1, BLOCK // max(len(order), 1))
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        every = weights[rows].take(order, axis=1).astype(dtype)
        positive = every * label
        if len(starts) < len(order):
            every = np.add.reduceat(every, starts, axis=1, dtype=dtype)
            positive = np.add.reduceat(positive, starts, axis=1, dtype=dtype)
        yield rows, positive, every


def _whole(weights: Array) -> np.dtype[Any]:
    """Of whole numbers up to total^2, which sums over pairs stay below.

    32 bits are twice as fast where they hold it.
    """
    most = int(weights.sum(axis=1).max(initial=0))
    return np.dtype(np.int32 if most**2 < 2**31 else np.int64)


def confusion(y: Array, predicted: Array, classes: int, weights: Array) -> Array:
    """Weighted counts [R, classes, classes], truth by prediction."""
    n = len(y)
    cells = csr_array(
        (np.ones(n), (np.arange(n), y * classes + predicted)), shape=(n, classes * classes)
    )
    return (weights @ cells).reshape(len(weights), classes, classes)


def accuracy(table: Array) -> Array:
    """Share of right answers, from confusion tables [R, C, C]."""
    return _divide(np.trace(table, axis1=1, axis2=2), table.sum(axis=(1, 2)))


def class_rates(table: Array) -> tuple[Array, Array, Array]:
    """Recall, precision and F1 of each class, [R, C] each; NaN where there is nothing to count."""
    right = np.diagonal(table, axis1=1, axis2=2)
    truth, guess = table.sum(axis=2), table.sum(axis=1)
    return _divide(right, truth), _divide(right, guess), _divide(2 * right, truth + guess)


def balanced_accuracy(table: Array) -> Array:
    """Mean recall over the classes that occur."""
    return _mean(class_rates(table)[0])


def macro_f1(table: Array) -> Array:
    """Mean F1 over the classes that occur in truth or prediction."""
    return _mean(class_rates(table)[2])


def steps_away(table: Array) -> Array:
    """Mean distance of prediction and truth in places of the scale, of ordinal classes."""
    places = np.arange(table.shape[1])
    away = np.abs(places[:, None] - places[None, :])
    return _divide(np.einsum("rij,ij->r", table, away), table.sum(axis=(1, 2)))


def mcc(table: Array) -> Array:
    """Matthews correlation of Gorodkin (2004); 0 where truth or prediction is constant."""
    truth, guess = table.sum(axis=2), table.sum(axis=1)
    total = table.sum(axis=(1, 2))
    right = np.trace(table, axis1=1, axis2=2)
    above = right * total - (truth * guess).sum(axis=1)
    below = np.sqrt((total**2 - (truth**2).sum(axis=1)) * (total**2 - (guess**2).sum(axis=1)))
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)


def quadratic_kappa(table: Array) -> Array:
    """Cohen's kappa with quadratic weights."""
    classes = table.shape[1]
    places = np.arange(classes)
    cost = (places[:, None] - places[None, :]) ** 2
    truth, guess = table.sum(axis=2), table.sum(axis=1)
    expected = np.einsum("ri,rj,ij->r", truth, guess, cost)
    observed = np.einsum("rij,ij->r", table, cost) * table.sum(axis=(1, 2))
    return 1 - _divide(observed, expected)


def mean_of(values: Array, weights: Array) -> Array:
    """Weighted mean of a value a sample [n]."""
    return _divide(weights @ values, weights.sum(axis=1))


def ece(confidence: Array, correct: Array, weights: Array, bins: int = ECE_BINS) -> Array:
    """Expected calibration error over equal-width bins (Guo et al., ICML 2017)."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    n = len(place)
    cells = csr_array((confidence - correct, (np.arange(n), place)), shape=(n, bins))
    return _divide(np.abs(weights @ cells).sum(axis=1), weights.sum(axis=1))


def r2(y: Array, predicted: Array, weights: Array) -> Array:
    """Coefficient of determination; NaN where the truth does not vary."""
    centred = y - y.mean()
    scale = np.abs(centred).max() or 1.0
    truth, error = centred / scale, (y - predicted) / scale
    # Told from a sample that was drawn: sums of squares then lose no more than `n` roundings,
    # and equal ones add up to nothing at all.
    away = truth - truth[np.argmax(weights > 0, axis=1)][:, None]
    counted = weights * away
    spread = _dot(counted, away) - _divide(counted.sum(axis=1) ** 2, weights.sum(axis=1))
    return 1 - _divide(weights @ error**2, spread)


def concordance(y: Array, predicted: Array, weights: Array) -> Array:
    """Share of pairs with different truth whose predictions are in the same order, ties half."""
    truth, guess = (np.unique(values, return_inverse=True)[1] for values in (y, predicted))
    low, high, start, stop = _in_order(truth, guess)
    right = np.empty(len(weights))
    dtype = _whole(weights)
    step = max(1, BLOCK // max(len(low), 1))
    for first in range(0, len(weights), step):
        rows = slice(first, first + step)
        counts = weights[rows].astype(dtype)
        below = np.zeros((len(counts), len(low) + 1), dtype)
        np.cumsum(counts.take(low, axis=1), axis=1, out=below[:, 1:])
        between = below.take(stop, axis=1) - below.take(start, axis=1)
        right[rows] = _dot(counts.take(high, axis=1), between)
    tied = _alike(guess, weights) - _alike(guess * (truth.max() + 1) + truth, weights)
    pairs = weights.sum(axis=1, dtype=np.float64) ** 2 - _alike(truth, weights)
    return _divide(2 * right + tied / 2, pairs)


def _in_order(truth: Array, guess: Array) -> tuple[Array, Array, Array, Array]:
    """All pairs in which both truth and guess of one are larger, in n log n runs.

    Two guesses part at the highest bit in which their ranks differ. So each bit, among those
    alike in all bits above it, pairs who has it with those before him, by truth, who have not.

    Args:
        truth: Ranks [n]; ties share one.
        guess: As `truth`.

    Returns:
        Who is smaller in a pair, one after the other; who is larger; and for each of these, where
        the run of his smaller ones begins and ends.
    """
    parts: list[tuple[Array, Array, Array, Array]] = []
    passed = 0
    for bit in range(int(guess.max()).bit_length()):
        above = guess >> (bit + 1)
        order = np.lexsort((truth, above))
        has = (guess[order] >> bit & 1).astype(bool)
        before = np.r_[0, np.cumsum(~has)] + passed
        start = before[_first(above[order])]
        stop = before[_first(above[order] * (truth.max() + 1) + truth[order])]
        parts.append((order[~has], order[has], start[has], stop[has]))
        passed = int(before[-1])
    if not parts:
        return (np.empty(0, np.int64),) * 4
    low, high, start, stop = (np.concatenate(part) for part in zip(*parts, strict=True))
    return low, high, start, stop


def _first(codes: Array) -> Array:
    """For each place the first of the equal ones that it stands among [n]."""
    new = np.r_[True, codes[1:] != codes[:-1]]
    return np.maximum.accumulate(np.where(new, np.arange(len(codes)), 0))


def _alike(codes: Array, weights: Array) -> Array:
    """Ordered pairs [R] of one code, each with itself included."""
    n = len(codes)
    cells = csr_array((np.ones(n), (np.arange(n), np.unique(codes, return_inverse=True)[1])))
    return ((weights @ cells) ** 2).sum(axis=1)


def over_labels(
    one: Callable[[Array, Array, Array], Array], y: Array, scores: Array, weights: Array
) -> Array:
    """Mean of a binary metric over labels [n, C] where it is defined; NaN is unknown."""
    parts = []
    for label in range(y.shape[1]):
        known = ~np.isnan(y[:, label])
        if known.any():
            parts.append(one(y[known, label], scores[known, label], weights[:, known]))
    return _mean(np.stack(parts, axis=1)) if parts else np.full(len(weights), np.nan)


def _mean(values: Array) -> Array:
    """Mean along the last axis over what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1))


def _divide(above: Array, below: Array) -> Array:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
