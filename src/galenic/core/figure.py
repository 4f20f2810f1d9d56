"""A metric as `metrics.json` holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A metric with its interval.

    Attributes:
        value: Point estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Coverage of the interval.
        n: Samples behind it.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    n: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Figure:
        """From what was written; null is NaN."""

        def number(key: str) -> float:
            value = values.get(key)
            return float("nan") if value is None else float(value)

        level, n = values.get("level"), values.get("n")
        return cls(number("value"), number("low"), number("high"), level or 0.95, int(n or 0))
