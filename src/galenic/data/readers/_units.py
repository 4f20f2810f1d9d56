"""Voltages of any prefix in one unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
# Both characters for micro; Unicode has two.
TO_MILLIVOLT = {"nv": 1e-6, "uv": 1e-3, "\u00b5v": 1e-3, "\u03bcv": 1e-3, "mv": 1.0, "v": 1e3}


def in_millivolts(samples: Array, units: Sequence[str]) -> Array:
    """Channels [C, T] in mV, in place; a channel in another unit than volts stays as it is."""
    for row, unit in zip(samples, units, strict=True):
        row *= TO_MILLIVOLT.get(unit.strip().casefold(), 1.0)
    return samples
