"""What is scored, and what is refused before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from galenic.core.config import parse
from galenic.core.errors import ConfigError
from galenic.evaluation.metrics import MAIN, NAMES
from galenic.evaluation.protocol import ScoreConfig, score


@pytest.mark.parametrize("key", ["sensitivity", "specificity"])
@pytest.mark.parametrize("wish", [90, 1.5, 0, -0.5, float("nan")])
def test_a_wish_is_a_share(key: str, wish: float) -> None:
    with pytest.raises(ConfigError, match=key):
        parse(ScoreConfig, {key: [0.9, wish]})


@pytest.mark.parametrize("kind", MAIN)
def test_the_main_metric_is_among_those_that_are_asked_for(kind: str) -> None:
    other = next(name for name in NAMES[kind] if name != MAIN[kind])
    assert set(ScoreConfig(metrics=[other]).names(kind)) == {other, MAIN[kind]}
    assert tuple(ScoreConfig().names(kind)) == NAMES[kind]


def test_other_metrics_alone_still_have_a_main_one() -> None:
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {"val": 30, "test": 40}
    found = score(
        "binary",
        ["well", "ill"],
        targets={part: np.arange(n) % 2 for part, n in parts.items()},
        logits={part: rng.normal(size=n) for part, n in parts.items()},
        groups={part: np.arange(n) for part, n in parts.items()},
        rows={part: np.arange(n) for part, n in parts.items()},
        table=pd.DataFrame(index=range(40)),
        config=ScoreConfig(resamples=0, metrics=["accuracy"]),
        seed=0,
    ).documents["metrics.json"]
    assert set(found["test"]) == set(found["validation"]) == {"accuracy", found["main"]}


def test_a_metric_of_another_kind_is_refused_with_the_table_at_hand() -> None:
    with pytest.raises(ConfigError, match="no metric 'rmse' for a binary label"):
        ScoreConfig(metrics=["rmse"]).require("binary", pd.DataFrame())
