"""The patient-level bootstrap, vectorised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from galenic.core.seeding import rng

Array = np.ndarray[Any, np.dtype[Any]]
# Elements of a chunk of weights: 1 MB in float64, so that a chunk stays in the cache.
CHUNK = 131_072


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
    """How often each of `units` patients is drawn: chunks [r, units] of all resamples."""
    draw = rng(seed, "bootstrap")
    step = max(1, CHUNK // max(units, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        yield counts_of(draw.integers(0, units, (rows, units), dtype=np.uint32), units)


def counts_of(indices: Array, units: int) -> Array:
    """Counts [r, units] of drawn indices [r, m]."""
    rows = len(indices)
    counts = np.empty((rows, units))
    for row, drawn in zip(counts, indices, strict=True):
        row[:] = np.bincount(drawn, minlength=units)
    return counts


def resampled(metric: Callable[[Array], Array], groups: Array, resamples: int, seed: int) -> Array:
    """Values of `metric` on resampled patients, [resamples] (or [resamples, k]).

    Args:
        metric: From sample weights [r, n] to values [r] or [r, k].
        groups: Patient of each sample [n].
        resamples: How many.
        seed: Of the draws.
    """
    codes, place = np.unique(groups, return_inverse=True)
    each_its_own = len(codes) == len(groups)
    parts = []
    for counts in draw_counts(len(codes), resamples, seed):
        # np.unique sorts, so the samples of distinct patients are a permutation of the counts.
        parts.append(metric(counts if each_its_own and _in_order(place) else counts[:, place]))
    return np.concatenate(parts) if parts else np.empty(0)


def _in_order(place: Array) -> bool:
    return bool((place == np.arange(len(place))).all())


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
