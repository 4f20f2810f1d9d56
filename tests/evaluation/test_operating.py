"""Youden's threshold, and each label by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from galenic.evaluation.labels import by_label
from galenic.evaluation.metrics import evaluate
from galenic.evaluation.operating import operating_points, youden

OPTIONS = {"resamples": 20, "level": 0.95, "seed": 0}


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=30).filter(
        lambda pairs: {y for y, _ in pairs} == {0, 1}
    )
)
def test_youden_is_the_best_of_all_thresholds(pairs: list[tuple[int, int]]) -> None:
    y, scores = (np.array(part) for part in zip(*pairs, strict=True))
    gains = {
        t: (scores[y == 1] >= t).mean() - (scores[y == 0] >= t).mean() for t in np.unique(scores)
    }
    at, gain = youden(y, scores.astype(float))
    assert gain == pytest.approx(max(gains.values()))
    assert at == max(t for t, value in gains.items() if value == pytest.approx(gain))


def test_one_class_has_no_threshold() -> None:
    for y in (np.zeros(3), np.ones(3), np.zeros(0)):
        assert np.isnan(youden(y, np.arange(len(y), dtype=float))).all()


def test_the_threshold_of_validation_is_the_one_of_test() -> None:
    rng = np.random.default_rng(0)
    y_val, y_test = rng.integers(0, 2, 80), rng.integers(0, 2, 70)
    val, test = rng.normal(size=80) + y_val, rng.normal(size=70) + 3 * y_test
    [point] = operating_points(
        (y_val, val), (y_test, test), np.arange(70), sensitivity=(), specificity=(), **OPTIONS
    )
    at = youden(y_val, val)[0]
    assert point["threshold"] == at != youden(y_test, test)[0]
    predicted = test >= at
    assert point["sensitivity"]["value"] == predicted[y_test == 1].mean()
    assert point["specificity"]["value"] == (~predicted[y_test == 0]).mean()
    assert point["f1"]["value"] == pytest.approx(f1_score(y_test, predicted))


def test_a_label_of_one_class_is_nan_and_left_out_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, (60, 4)).astype(float)
    y[:, 1] = 0
    y[:, 3] = np.nan
    y[::7, 2] = np.nan
    scores = rng.random((60, 4))
    found = by_label(["a", "b", "c", "d"], (y, scores), (y, scores), np.arange(60), **OPTIONS)
    known = ~np.isnan(y[:, 2])
    areas = [roc_auc_score(y[:, 0], scores[:, 0]), roc_auc_score(y[known, 2], scores[known, 2])]
    values = {entry["label"]: entry.get("metrics", {}).get("auroc", {}) for entry in found}
    assert values["a"]["value"] == pytest.approx(areas[0])
    assert values["c"]["value"] == pytest.approx(areas[1])
    assert np.isnan(values["b"]["value"])
    assert (found[2]["n"], found[3]["n"]) == (known.sum(), 0)
    assert "threshold" not in found[3] and "note" in found[1]["operating"]
    macro = evaluate("multilabel", y, scores, resamples=0, names=["auroc"])["auroc"].value
    assert macro == pytest.approx(np.mean(areas))
