"""Grids of coefficients: `alpha=0:1:0.1`, and the points they span."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from galenic.core.errors import ConfigError


def parse(words: Sequence[str]) -> dict[str, list[float]]:
    """Values by key of `key=start:stop:step`, both ends included, or `key=a,b,c`.

    Raises:
        ConfigError: If a word is neither.
    """
    found = {}
    for word in words:
        key, _, text = word.partition("=")
        try:
            values = _values(text)
        except ValueError:
            values = []
        if not key or not values:
            raise ConfigError(
                f"'{word}' spans no values.",
                where="--sweep",
                expected="alpha=0:1:0.1 (start, stop, step), or density=0.1,0.2",
            )
        found[key] = values
    return found


def _values(text: str) -> list[float]:
    if ":" not in text:
        return [float(part) for part in text.split(",")]
    start, stop, step = (float(part) for part in text.split(":"))
    if step <= 0 or stop < start:
        raise ValueError(text)
    # Half a step of room: 0.1 is no exact number, and the end is meant to be hit.
    count = int(np.floor((stop - start) / step + 0.5)) + 1
    return [round(start + number * step, 10) for number in range(count)]


def points(grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every combination; `alpha` runs fastest, for all else is combined anew."""
    keys = sorted(grid, key=lambda key: key == "alpha")
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(grid[key] for key in keys))
    ]
