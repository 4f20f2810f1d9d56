"""Grids of coefficients: `alpha=0:1:0.1`, and the points they span."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from galenic.core.errors import ConfigError


def parse(words: Sequence[str]) -> dict[str, list[float]]:
    """Values by key of `key=start:stop:step`, where a step meets the stop with it, or `key=a,b,c`.

    Raises:
        ConfigError: If a word is neither, or a key stands twice.
    """
    found: dict[str, list[float]] = {}
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
        if key in found:
            raise ConfigError(
                f"'{key}' is swept twice.", where="--sweep", expected=f"{key}=0.1,0.2,0.5"
            )
        found[key] = values
    return found


def _values(text: str) -> list[float]:
    sign = ":" if ":" in text else ","
    numbers = [float(part) for part in text.split(sign)]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(text)
    if sign == ",":
        return numbers
    start, stop, step = numbers
    if step <= 0 or stop < start:
        raise ValueError(text)
    # 0.1 is no exact number, and a stop that is a whole number of steps away is meant to be met.
    count = math.floor((stop - start) / step + 1e-9) + 1
    return [round(start + number * step, 10) for number in range(count)]


def points(grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every combination; `alpha` runs fastest, for all else is combined anew."""
    keys = sorted(grid, key=lambda key: key == "alpha")
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(grid[key] for key in keys))
    ]
