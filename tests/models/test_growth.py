"""Heads that grow into new classes, and grades in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from galenic.core.errors import ConfigError
from galenic.models.growth import grow, sources
from galenic.models.heads import CumulativeHead, LinearHead


def trained(outputs: int, width: int = 5) -> LinearHead:
    torch.manual_seed(outputs)
    head = LinearHead(width, outputs)
    head.standardise(torch.randn(20, width))
    nn.init.normal_(head.linear.weight)
    nn.init.normal_(head.linear.bias)
    return head


def grown(old: list[str], new: list[str], mapping: dict[str, str]) -> tuple[LinearHead, LinearHead]:
    before = trained(1 if len(old) == 2 else len(old))
    after = LinearHead(5, 1 if len(new) == 2 else len(new))
    grow(after, before.state_dict(), sources(old, new, mapping))
    return before, after


def test_old_classes_keep_their_rows_to_the_bit_whatever_their_new_places() -> None:
    before, after = grown(["a4c", "plax", "sc"], ["psmv", "sc", "a4c", "plax", "psav"], {})
    features = torch.randn(7, 5)
    old, new = before(features), after(features)
    for name, place in (("sc", 1), ("a4c", 2), ("plax", 3)):
        row = ["a4c", "plax", "sc"].index(name)
        assert torch.equal(after.linear.weight[place], before.linear.weight[row])
        assert torch.equal(after.linear.bias[place], before.linear.bias[row])
        # The rows are the same; a product of five rows may be summed in another order than three.
        torch.testing.assert_close(new[:, place], old[:, row], rtol=1e-6, atol=1e-6)
    assert torch.equal(after.mean, before.mean)
    assert torch.equal(after.scale, before.scale)
    assert not new[:, [0, 4]].any()
    assert torch.equal(new[:, [2, 3, 1]].argmax(1), old.argmax(1))


def test_subtypes_share_the_probability_of_their_class() -> None:
    subtypes = ["adenosis", "fibroadenoma", "tubular", "ductal", "lobular"]
    mapping = dict.fromkeys(subtypes[:3], "benign") | dict.fromkeys(subtypes[3:], "malignant")
    before, after = grown(["benign", "malignant"], subtypes, mapping)
    features = torch.randn(9, 5)
    share = after(features).softmax(1)
    malignant = before(features)[:, 0].sigmoid()
    torch.testing.assert_close(share[:, 3:].sum(1), malignant)
    torch.testing.assert_close(share[:, 0], (1 - malignant) / 3)


def test_two_classes_out_of_three_are_one_logit() -> None:
    before, after = grown(["a", "b", "c"], ["a", "c"], {})
    features = torch.randn(4, 5)
    old = before(features)
    torch.testing.assert_close(after(features)[:, 0], old[:, 2] - old[:, 0])


@pytest.mark.parametrize(
    ("new", "mapping", "says"),
    [
        (["x", "y", "z"], {}, "none of the classes"),
        (["x", "y", "z"], {"w": "benign"}, "no class 'w'"),
        (["x", "y", "z"], {"x": "bening"}, "benign"),
    ],
)
def test_classes_that_do_not_meet_are_named(
    new: list[str], mapping: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        sources(["benign", "malignant"], new, mapping)


def test_a_head_of_another_width_or_kind_is_refused_and_nothing_is_changed() -> None:
    head = LinearHead(5, 3)
    for other, says in ((trained(3, 6), "features"), (CumulativeHead(5, 3), "other tensors")):
        with pytest.raises(ConfigError, match=says):
            grow(head, other.state_dict(), [0, 1, 2])
    assert not head.linear.weight.any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), grades=st.integers(2, 11))
def test_grades_are_cumulative_and_monotone(seed: int, grades: int) -> None:
    torch.manual_seed(seed)
    head = CumulativeHead(4, grades)
    nn.init.normal_(head.linear.weight, std=2.0)
    nn.init.normal_(head.log_gaps)
    features = torch.randn(6, 4)
    chances = head(features).exp().detach().numpy()
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)
    thresholds = head.thresholds.detach().numpy()
    assert (np.diff(thresholds) > 0).all()
    scores = (features @ head.linear.weight[0]).detach().numpy()
    for score, row in zip(scores, chances, strict=True):
        below = [1 / (1 + np.exp(score - theta)) for theta in thresholds]
        np.testing.assert_allclose(row.cumsum()[:-1], below, atol=1e-5)
    # One direction: a higher score is a higher grade, and E[y] = sum_k P(y > k).
    expected = (chances * np.arange(grades)).sum(1)
    assert (np.diff(expected[np.argsort(scores)]) >= -1e-5).all()
    np.testing.assert_allclose(expected, (1 - chances.cumsum(1)[:, :-1]).sum(1), atol=1e-4)


def test_grades_begin_equally_likely_and_far_ones_stay_finite() -> None:
    head = CumulativeHead(3, 6)
    torch.testing.assert_close(head(torch.randn(2, 3)).exp(), torch.full((2, 6), 1 / 6))
    nn.init.constant_(head.linear.weight, 100.0)
    features = torch.full((1, 3), 2.0, requires_grad=True)
    loss = nn.functional.cross_entropy(head(features), torch.tensor([0]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert features.grad.isfinite().all()
