"""What a network of stays looked at, over all test stays, with intervals over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from galenic.evaluation.bootstrap import Array, estimates
from galenic.evaluation.protocol import ScoreConfig

GATES = "gates.json"


def looked_at(
    gates: Mapping[str, Array],
    shares: Mapping[str, tuple[Sequence[str], Array]],
    groups: Array,
    *,
    window_hours: float,
    score: ScoreConfig,
    seed: int,
) -> dict[str, Any]:
    """The content of `gates.json`: mean gates by hour, mean shares by channel.

    Args:
        gates: By modality: one gate a stay [n, 1], or one a stay and time [n, T].
        shares: By modality: the channels, and the share of each in every stay [n, D].
        groups: Patient of each stay [n].
        window_hours: Of the window; the T times are spread evenly from its start to its end.
        score: Draws and level of the bootstrap.
        seed: Of the draws.
    """
    means = partial(_means, groups=groups, score=score, seed=seed)

    def hours(steps: int) -> list[float | None]:
        return np.linspace(0, window_hours, steps).tolist() if steps > 1 else [None]

    return {
        "level": score.level,
        "gates": {
            name: [
                {"hour": hour} | found
                for hour, found in zip(hours(values.shape[1]), means(values), strict=True)
            ]
            for name, values in gates.items()
        },
        "channels": {
            name: [
                {"channel": channel} | found
                for channel, found in zip(channels, means(values), strict=True)
            ]
            for name, (channels, values) in shares.items()
        },
    }


def _means(values: Array, groups: Array, score: ScoreConfig, seed: int) -> list[dict[str, Any]]:
    """Mean of each column of [n, k], with its interval."""
    exact = values.astype(np.float64)
    found = estimates(
        lambda weights: weights @ exact / weights.sum(axis=1, keepdims=True),
        groups,
        resamples=score.resamples,
        level=score.level,
        seed=seed,
    )
    return [figure.to_dict() for figure in found]
