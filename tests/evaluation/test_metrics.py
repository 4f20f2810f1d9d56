"""Metrics and intervals against scikit-learn and an obvious loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from galenic.core.errors import ConfigError, DataError
from galenic.evaluation import weighted
from galenic.evaluation.bootstrap import counts_of, draw_counts
from galenic.evaluation.calibration import fit_temperature, negative_log_likelihood
from galenic.evaluation.metrics import evaluate, paired_difference, point
from galenic.evaluation.operating import threshold_at

REFERENCE = {
    "auroc": sk.roc_auc_score,
    "auprc": sk.average_precision_score,
    "accuracy": lambda y, s: sk.accuracy_score(y, s >= 0.5),
    "balanced_accuracy": lambda y, s: sk.balanced_accuracy_score(y, s >= 0.5),
    "macro_f1": lambda y, s: sk.f1_score(y, s >= 0.5, average="macro"),
    "mcc": lambda y, s: sk.matthews_corrcoef(y, s >= 0.5),
    "brier": sk.brier_score_loss,
}


def drawn(seed: int, n: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both classes, and scores with many ties where `steps` is small."""
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    return y, rng.integers(0, steps + 1, n) / steps


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(4, 60), steps=st.sampled_from([2, 5, 1000]))
@pytest.mark.parametrize("name", REFERENCE)
def test_binary_metric_equals_scikit_learn(name: str, seed: int, n: int, steps: int) -> None:
    y, scores = drawn(seed, n, steps)
    assert point("binary", name, y, scores) == pytest.approx(REFERENCE[name](y, scores), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.sampled_from([3, 1000]))
@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_a_weight_is_a_repetition(name: str, seed: int, steps: int) -> None:
    y, scores = drawn(seed, 30, steps)
    counts = np.random.default_rng(seed).integers(0, 4, 30)
    counts[:2] = 1
    metric = getattr(weighted, name)
    repeated = np.repeat(np.arange(30), counts)
    expected = metric(y[repeated], scores[repeated], np.ones((1, len(repeated))))
    assert metric(y, scores, counts[None].astype(float)) == pytest.approx(expected, abs=1e-12)


def test_multiclass_and_ordinal_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 5, 300), rng.dirichlet(np.ones(5), 300)
    found = evaluate("ordinal", y, p, resamples=0)
    guess = p.argmax(axis=1)
    assert found["auroc"].value == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    kappa = sk.cohen_kappa_score(y, guess, weights="quadratic")
    assert found["quadratic_kappa"].value == pytest.approx(kappa)
    assert found["mcc"].value == pytest.approx(sk.matthews_corrcoef(y, guess))


def test_continuous_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=80)
    guess = y + rng.normal(size=80)
    found = evaluate("continuous", y, guess, resamples=0)
    assert found["r2"].value == pytest.approx(sk.r2_score(y, guess))
    assert found["rmse"].value == pytest.approx(sk.root_mean_squared_error(y, guess))
    pairs = [(i, j) for i in range(80) for j in range(80) if y[i] > y[j]]
    share = np.mean([guess[i] > guess[j] for i, j in pairs])
    assert found["concordance"].value == pytest.approx(share)


@settings(max_examples=60, deadline=None)
@given(
    cases=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=40
    )
)
def test_concordance_is_the_share_of_all_pairs(cases: list[tuple[int, int, int]]) -> None:
    y, guess, weights = (np.array(part) for part in zip(*cases, strict=True))
    repeated = np.repeat(np.arange(len(y)), weights)
    hits = [
        0.5 * (guess[i] >= guess[j]) + 0.5 * (guess[i] > guess[j])
        for i in repeated
        for j in repeated
        if y[i] > y[j]
    ]
    expected = np.mean(hits) if hits else np.nan
    for counts in (weights.astype(np.uint8), weights.astype(float)):
        [found] = weighted.concordance(y / 7, guess / 3, counts[None])
        assert found == pytest.approx(expected, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exponent=st.sampled_from([-500, -30, 0, 20, 480]),
    shift=st.sampled_from([0, 1, -(10**8)]),
)
def test_r2_asks_for_no_unit(seed: int, exponent: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, rng.integers(0, 100, 10)]
    guess = y + rng.integers(-20, 21, 12)
    counts = np.r_[1, 1, rng.integers(0, 4, 10)]
    # Powers of two and whole numbers: what is given is what is meant, to the last bit.
    [found] = weighted.r2(
        *((values + shift) * 2.0**exponent for values in (y, guess)), counts[None]
    )
    repeated = np.repeat(np.arange(12), counts)
    assert found == pytest.approx(sk.r2_score(y[repeated], guess[repeated]), rel=1e-9, abs=1e-9)


def test_r2_of_what_does_not_vary_is_not_defined() -> None:
    y = np.r_[np.full(6, 72.31), 80.0]
    counts = np.array([[1, 2, 0, 1, 1, 3, 0], [0, 0, 0, 0, 0, 0, 2], [1, 0, 0, 0, 0, 0, 1]])
    assert np.isnan(weighted.r2(y, y + 2, counts)).tolist() == [True, True, False]


def test_unknown_labels_change_nothing() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, (60, 3)).astype(float)
    scores = rng.random((60, 3))
    y[::4, 1] = np.nan
    other = scores.copy()
    other[::4, 1] = rng.random(15)
    assert evaluate("multilabel", y, scores) == evaluate("multilabel", y, other)
    known = ~np.isnan(y[:, 1])
    parts = [sk.roc_auc_score(y[:, c], scores[:, c]) for c in (0, 2)]
    parts.append(sk.roc_auc_score(y[known, 1], scores[known, 1]))
    assert point("multilabel", "auroc", y, scores) == pytest.approx(np.mean(parts))


def test_interval_equals_a_loop_over_resampled_patients() -> None:
    rng = np.random.default_rng(3)
    groups = np.sort(rng.integers(0, 25, 70))
    y, scores = drawn(3, 70, 1000)
    found = evaluate("binary", y, scores, groups, resamples=200, names=["auroc"], seed=5)["auroc"]
    codes = np.unique(groups)
    values = []
    for counts in draw_counts(len(codes), 200, 5):
        for row in counts:
            rows = [
                place
                for code, times in zip(codes, row.astype(int), strict=True)
                for place in np.flatnonzero(groups == code).repeat(times)
            ]
            values.append(sk.roc_auc_score(y[rows], scores[rows]))
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-9)
    assert found.n == len(codes)


def test_counts_are_counts() -> None:
    np.testing.assert_array_equal(
        counts_of(np.array([[0, 2, 2], [1, 1, 1]]), 3), [[1, 0, 2], [0, 3, 0]]
    )


def test_a_model_does_not_differ_from_itself_and_differs_from_chance() -> None:
    y, scores = drawn(4, 200, 1000)
    same = paired_difference("binary", "auroc", y, scores, scores)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    good = np.clip(0.7 * y + 0.3 * scores, 0, 1)
    better = paired_difference("binary", "auroc", y, good, scores)
    assert better.low > 0
    assert better.p < 0.01


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), wish=st.floats(0.05, 1.0))
def test_threshold_grants_the_wish_and_no_more_than_needed(seed: int, wish: float) -> None:
    y, scores = drawn(seed, 40, 20)
    at = threshold_at(y, scores, sensitivity=wish)
    found = scores[y == 1]
    assert (found >= at).mean() >= wish - 1e-9
    higher = np.nextafter(at, np.inf)
    assert (found >= higher).mean() < wish
    at = threshold_at(y, scores, specificity=wish)
    assert (scores[y == 0] < at).mean() >= wish - 1e-9


def test_temperature_finds_the_scale_that_was_put_in() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(4000, 3)) * 1.5
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.array([rng.choice(3, p=row) for row in chance])
    assert fit_temperature("multiclass", y, logits * 4) == pytest.approx(4, rel=0.1)
    t = fit_temperature("multiclass", y, logits * 4)
    before = negative_log_likelihood("multiclass", y, logits * 4)
    assert negative_log_likelihood("multiclass", y, logits * 4 / t) < before


def test_bad_input_is_named() -> None:
    y, scores = drawn(0, 10, 10)
    with pytest.raises(ConfigError, match="auroc"):
        evaluate("binary", y, scores, names=["aurok"])
    scores[3] = np.nan
    with pytest.raises(DataError, match="1 of 10"):
        evaluate("binary", y, scores)
    with pytest.raises(DataError, match="do not fit"):
        evaluate("multiclass", y, y / 2)


@pytest.mark.parametrize(
    ("kind", "y", "expected"),
    [
        ("binary", [1, 2, 1], "from 0 to 1"),
        ("binary", [0, np.nan, 1], "from 0 to 1"),
        ("binary", [0, 0.5, 1], "from 0 to 1"),
        ("multiclass", [0, -1, 1], "from 0 to 2"),
        ("ordinal", [0, 3, 1], "from 0 to 2"),
        ("multilabel", [[0, 1, np.nan], [0, 2, 1], [0, 0, 0]], "NaN for unknown"),
        ("continuous", [0.5, np.nan, 1], "finite"),
        ("continuous", [0.5, np.inf, 1], "finite"),
    ],
)
def test_a_label_that_is_none_is_named(kind: str, y: list[Any], expected: str) -> None:
    scores = np.full(3, 0.5) if kind in ("binary", "continuous") else np.full((3, 3), 1 / 3)
    with pytest.raises(DataError, match=rf"of 3 labels(.|\n)*row \d(.|\n)*{expected}"):
        evaluate(kind, np.array(y), scores, resamples=0)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        evaluate("multilabel", np.zeros((3, 2)), np.zeros((3, 4)))
