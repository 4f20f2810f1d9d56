"""What several seeds say together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def mean_interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Mean over seeds with Student's interval: `value`, `low`, `high`, `per_seed`.

    Args:
        values: One figure a seed; with a single one the ends are NaN. One that is NaN makes all so:
            a mean over the other seeds is of other patients.
        level: Of the interval.
    """
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = math.nan
    if len(values) > 1 and not math.isnan(mean):
        point = float(t.ppf((1 + level) / 2, len(values) - 1))
        half = point * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half, "per_seed": list(values)}
