"""Heads against slow references."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from galenic.models.heads import LinearHead, NeighbourHead


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), neighbours=st.integers(1, 12), classes=st.integers(2, 4))
def test_neighbours_vote_as_in_a_double_loop(seed: int, neighbours: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    train, queries = rng.normal(size=(9, 5)), rng.normal(size=(4, 5))
    labels = rng.integers(0, classes, 9)
    head = NeighbourHead(5, classes, neighbours, temperature=0.5).double()
    head.remember(torch.from_numpy(train), torch.eye(classes, dtype=torch.float64)[labels])
    expected = np.zeros((4, classes))
    for q, query in enumerate(queries):
        cosine = [query @ t / np.linalg.norm(query) / np.linalg.norm(t) for t in train]
        for place in np.argsort(cosine)[::-1][:neighbours]:
            expected[q, labels[place]] += np.exp(cosine[place] / 0.5)
    expected /= expected.sum(axis=1, keepdims=True)
    found = head(torch.from_numpy(queries)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_unknown_label_casts_no_vote() -> None:
    head = NeighbourHead(2, 2, neighbours=2, temperature=1.0)
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01]])
    head.remember(features, torch.tensor([[1.0, torch.nan], [0.0, 1.0]]))
    votes = head(torch.tensor([[1.0, 0.0]]))
    assert votes[0, 1] == 1.0
    assert 0.49 < votes[0, 0] < 0.51


def test_linear_head_starts_undecided_and_ignores_dead_channels() -> None:
    head = LinearHead(3, 4)
    train = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 7 + 100
    train[:, 2] = 5.0
    head.standardise(train)
    assert torch.equal(head(train), torch.zeros(50, 4))
    torch.nn.init.ones_(head.linear.weight)
    moved = train.clone()
    moved[:, 2] += 1e6
    assert torch.equal(head(train), head(moved))
