"""The patient-level bootstrap, vectorised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from galenic.core.seeding import stream

Array = np.ndarray[Any, np.dtype[Any]]
# Counts in a chunk of resamples: 1 MB, and the draws behind them 4 MB.
CHUNK = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure and its doubt.

    Attributes:
        value: On the sample itself.
        low: Lower end of the percentile interval; NaN where there were no resamples.
        high: Upper end.
        level: Of the interval.
        n: Patients.
        undefined: Share of resamples in which the figure was not defined, and left out.
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    undefined: float = 0.0

    def to_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Of two models on the same patients: first minus second.

    Attributes:
        value: On the sample itself.
        low: Lower end of the percentile interval.
        high: Upper end.
        p: Two-sided bootstrap p-value of no difference.
    """

    value: float
    low: float
    high: float
    p: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def draw_counts(units: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each of `units` patients is drawn: chunks [r, units] of all resamples, uint8.

    That a patient is drawn more than 255 times has a chance below 1e-500.
    """
    draw = np.random.Generator(np.random.SFC64(stream(seed, "bootstrap")))
    step = max(1, CHUNK // max(units, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        yield counts_of(draw.integers(0, units, (rows, units), dtype=np.uint32), units)


def counts_of(indices: Array, units: int) -> Array:
    """Counts [r, units], uint8, of drawn indices [r, m]; at most 255 of one."""
    rows, drawn = indices.shape
    ends = np.arange(0, rows * drawn + 1, drawn, dtype=np.int32)
    ones = np.ones(rows * drawn, np.uint8)
    places = (
        indices.astype(np.int32, copy=False) if indices.itemsize != 4 else indices.view(np.int32)
    )
    # Adding up the entries of a sparse matrix is the fastest histogram there is in SciPy.
    return csr_array((ones, places.ravel(), ends), shape=(rows, units)).toarray()


def resampled(metric: Callable[[Array], Array], groups: Array, resamples: int, seed: int) -> Array:
    """Values of `metric` on resampled patients, [resamples] (or [resamples, k]).

    Args:
        metric: From sample counts [r, n], uint8, to values [r] or [r, k].
        groups: Patient of each sample [n].
        resamples: How many.
        seed: Of the draws.
    """
    codes, place = np.unique(groups, return_inverse=True)
    # Patients with one sample each may be drawn under any name: no need to look theirs up.
    each_its_own = len(codes) == len(groups)
    parts = [
        metric(counts if each_its_own else counts.take(place, axis=1))
        for counts in draw_counts(len(codes), resamples, seed)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def estimates(
    metric: Callable[[Array], Array], groups: Array, *, resamples: int, level: float, seed: int
) -> list[Estimate]:
    """Each column of a metric with its interval over patients.

    Args:
        metric: As for :func:`resampled`; from weights, too, that are floats.
        groups: Patient of each sample [n].
        resamples: How many; 0 for no intervals.
        level: Of the intervals.
        seed: Of the draws.
    """
    values = metric(np.ones((1, len(groups)))).reshape(-1)
    drawn = resampled(metric, groups, resamples, seed).reshape(-1, len(values))
    patients = len(np.unique(groups))
    return [estimate(value, drawn[:, place], level, patients) for place, value in enumerate(values)]


def estimate(value: float, values: Array, level: float, n: int) -> Estimate:
    """A figure with the percentile interval of its resampled values."""
    defined = values[~np.isnan(values)]
    undefined = 1 - len(defined) / len(values) if len(values) else 0.0
    low, high = percentiles(defined, level)
    return Estimate(float(value), low, high, level, n, float(undefined))


def percentiles(values: Array, level: float) -> tuple[float, float]:
    """Ends of the central share `level`; NaN where there are no values."""
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference(value: float, values: Array, level: float) -> Difference:
    """A difference with its interval and p-value."""
    defined = values[~np.isnan(values)]
    low, high = percentiles(defined, level)
    if not len(defined):
        return Difference(float(value), low, high, float("nan"))
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(defined) + 1))
    return Difference(float(value), low, high, float(p))
