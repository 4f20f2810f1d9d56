"""Series on a regular grid, and as one row of a table: for what cannot read irregular times."""

from __future__ import annotations

from typing import Any

import numpy as np

from galenic.data.events.series import Series

Array = np.ndarray[Any, np.dtype[Any]]


def carried_forward(
    series: Series, hours: float, steps: int, default: float = 0.0
) -> tuple[Array, Array]:
    """Each step holds the last measurement up to its end, however long ago; never a later one.

    Args:
        series: Of S stays and D channels.
        hours: Length of the window.
        steps: How many equal steps T it is cut into.
        default: Before the first measurement of a channel. Of standardised values 0 is the mean
            of training.

    Returns:
        Values float32 [S, T, D], and bool [S, T, D]: whether the step itself has a measurement.
    """
    # An hour that was rounded up to the end of the window still lies in it.
    step = np.minimum((series.hours * (steps / hours)).astype(np.int64), steps - 1)
    row, channel = np.nonzero(series.mask)
    last = np.full((len(series), steps, series.mask.shape[1]), -1, np.int64)
    # Rows are sorted by time, and of an assignment to one place the last one stays.
    last[series.stays[row], step[row], channel] = row
    observed = last >= 0
    last = np.maximum.accumulate(last, axis=1)
    if not len(series.values):
        return np.full(last.shape, default, np.float32), observed
    found = series.values[last, np.arange(last.shape[2])]
    return np.where(last >= 0, found, np.float32(default)), observed


def summaries(series: Series) -> Array:
    """Last, mean, lowest, highest and number of measurements of every channel.

    Returns:
        float32 [S, 5 * D], summary by summary; NaN for a channel that was never measured, whose
        count is 0.
    """
    shape = (len(series), series.mask.shape[1])
    row, channel = np.nonzero(series.mask)
    stay, value = series.stays[row], series.values[row, channel].astype(np.float64)
    count, total = np.zeros(shape), np.zeros(shape)
    np.add.at(count, (stay, channel), 1)
    np.add.at(total, (stay, channel), value)
    lowest, highest = np.full(shape, np.inf), np.full(shape, -np.inf)
    np.minimum.at(lowest, (stay, channel), value)
    np.maximum.at(highest, (stay, channel), value)
    last = np.full(shape, np.nan)
    last[stay, channel] = value
    never = count == 0
    parts = [last, total / np.where(never, 1, count), lowest, highest]
    known = [np.where(never, np.nan, part) for part in parts]
    return np.concatenate([*known, count], axis=1).astype(np.float32)
