"""Trees as tensors say what scikit-learn's say."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from galenic.pipeline.boosting import TreesConfig, grow

FEW = TreesConfig(max_iter=8, min_samples_leaf=3)
SETTINGS = {**FEW.model_dump(), "early_stopping": False, "random_state": 0}


def table(seed: int, rows: int = 120, holes: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Features with holes, and a score that some of them make."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(rows, 4)).astype(np.float32)
    score = features[:, 0] * 2 + features[:, 1] ** 2 + draw.normal(size=rows) * 0.3
    features[draw.random(features.shape) < holes] = np.nan
    return features, score


def logits(head: torch.nn.Module, features: np.ndarray) -> np.ndarray:
    return head(torch.from_numpy(features)).numpy()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4), st.sampled_from([0.0, 0.2]))
def test_classes_are_those_of_scikit_learn(seed: int, classes: int, holes: float) -> None:
    features, score = table(seed, holes=holes)
    codes = np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))
    peer = HistGradientBoostingClassifier(**SETTINGS).fit(features, codes)
    other = table(seed + 1)[0]
    if classes == 2:
        head = grow("binary", features, codes, 1, config=FEW, seed=0)
        expected = peer.decision_function(other)[:, None]
    else:
        head = grow("multiclass", features, codes, classes, config=FEW, seed=0)
        expected = peer.decision_function(other)
    np.testing.assert_allclose(logits(head, other), expected, rtol=1e-5, atol=1e-6)


def test_numbers_are_those_of_scikit_learn() -> None:
    features, score = table(0)
    head = grow("continuous", features, score, 1, config=FEW, seed=0)
    peer = HistGradientBoostingRegressor(**SETTINGS).fit(features, score)
    np.testing.assert_allclose(
        logits(head, features)[:, 0], peer.predict(features), rtol=1e-5, atol=1e-6
    )


def test_a_finding_that_is_unknown_teaches_nothing() -> None:
    features, score = table(3)
    both = np.stack([score > 0, score > 1], axis=1).astype(float)
    both[::3, 1] = np.nan
    head = grow("multilabel", features, both, 2, config=FEW, seed=0)
    known = ~np.isnan(both[:, 1])
    alone = grow("binary", features[known], both[known, 1], 1, config=FEW, seed=0)
    np.testing.assert_array_equal(logits(head, features)[:, 1:], logits(alone, features))


def test_a_weight_is_a_repeated_sample() -> None:
    features, score = table(5)
    codes = (score > 1).astype(int)
    heavy = grow("binary", features, codes, 1, config=FEW, seed=0, weights=1 + codes * 4.0)
    plain = grow("binary", features, codes, 1, config=FEW, seed=0)
    assert (logits(heavy, features) > logits(plain, features)).mean() > 0.9


def test_a_class_that_training_never_shows_is_not_expected() -> None:
    features, score = table(1)
    two = grow("multiclass", features, np.where(score > 0, 2, 0), 3, config=FEW, seed=0)
    shares = torch.from_numpy(logits(two, features)).softmax(dim=1)
    assert shares[:, 1].max() < 1e-3 and shares[:, [0, 2]].max(dim=1).values.min() > 0.4
    one = grow("multiclass", features, np.full(len(score), 1), 3, config=FEW, seed=0)
    assert torch.from_numpy(logits(one, features)).softmax(dim=1)[:, 1].min() > 0.999
    sure = grow("binary", features, np.ones(len(score)), 1, config=FEW, seed=0)
    assert logits(sure, features).min() > 5
    nothing = grow("multilabel", features, np.full((len(score), 1), np.nan), 1, config=FEW, seed=0)
    assert not logits(nothing, features).any()


def test_another_forest_is_loaded_whole() -> None:
    features, score = table(2)
    codes = (score > 0).astype(int)
    head = grow("binary", features, codes, 1, config=FEW, seed=0)
    more: dict[str, Any] = {"max_iter": 20, "max_leaf_nodes": 5}
    other = grow("binary", features, 1 - codes, 1, config=FEW.model_copy(update=more), seed=0)
    expected = logits(head, features)
    other.load_state_dict(copy.deepcopy(head.state_dict()))
    np.testing.assert_array_equal(logits(other, features), expected)
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict({"root": head.root})


def test_too_few_samples_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    features, score = table(0, rows=30)
    grow("binary", features, (score > 0).astype(int), 1, config=TreesConfig(), seed=0)
    assert "head.trees.min_samples_leaf=20 is too many" in capsys.readouterr().err
