"""Losses for rare and for dear classes: closed forms and what must not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from galenic.core.errors import ConfigError
from galenic.objectives.imbalance import (
    ClassLoss,
    as_classes,
    effective_number,
    expected_cost,
    focal,
    inverse_frequency,
)

KINDS = ["weighted", "effective", "focal", "logit_adjust"]


def drawn(seed: int = 0, n: int = 30, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % (2 * classes)
    return torch.randn(n, classes, generator=generator), labels.clamp_max(classes - 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(lambda c: sum(c) > 0))
def test_weights_sum_to_the_samples(counts: list[int]) -> None:
    found = torch.tensor(counts)
    for weights in (inverse_frequency(found), effective_number(found, 0.99)):
        assert (found * weights).sum().item() == pytest.approx(sum(counts), rel=1e-4)
        assert ((weights > 0) == (found > 0)).all()


def test_balanced_classes_weigh_one_and_the_extremes_of_beta_are_known() -> None:
    even, skewed = torch.tensor([7, 7, 7]), torch.tensor([90, 9, 1])
    assert torch.equal(inverse_frequency(even), torch.ones(3))
    torch.testing.assert_close(effective_number(even, 0.9), torch.ones(3))
    torch.testing.assert_close(effective_number(skewed, 0.0), torch.ones(3))
    nearly = effective_number(skewed, 1 - 1e-9)
    torch.testing.assert_close(nearly, inverse_frequency(skewed), rtol=1e-4, atol=0)


def test_the_loss_does_not_know_the_scale_of_its_weights() -> None:
    logits, labels = drawn()
    logits.requires_grad_(True)
    loss = ClassLoss("weighted", torch.bincount(labels))
    first = loss(logits, labels)
    [before] = torch.autograd.grad(first, logits)
    loss.weights.mul_(17.0)
    second = loss(logits, labels)
    [after] = torch.autograd.grad(second, logits)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(before, after)


def test_repeating_a_class_changes_no_gradient_once_weights_are_counted_anew() -> None:
    logits, labels = drawn()
    weight = torch.eye(3, requires_grad=True)

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        loss = ClassLoss("weighted", torch.bincount(labels[rows]))
        [found] = torch.autograd.grad(loss(logits[rows] @ weight, labels[rows]), weight)
        return found

    once = torch.arange(30)
    rare = torch.cat([once, *[once[labels == 1]] * 4])
    torch.testing.assert_close(gradient(once), gradient(rare))


def test_costs_of_one_are_the_chance_of_a_mistake_and_none_teach_nothing() -> None:
    logits, labels = drawn()
    logits.requires_grad_(True)
    wrong = expected_cost(logits, labels, 1 - torch.eye(3))
    right = logits.softmax(1)[torch.arange(30), labels]
    torch.testing.assert_close(wrong, (1 - right).mean())
    [still] = torch.autograd.grad(expected_cost(logits, labels, torch.zeros(3, 3)), logits)
    assert not still.any()


def test_a_dearer_mistake_is_avoided() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = ClassLoss(
        "cost_matrix", torch.tensor([5, 5, 5]), costs=[[0, 1, 5], [1, 0, 1], [5, 1, 0]]
    )
    [gradient] = torch.autograd.grad(loss(logits, torch.tensor([0])), logits)
    assert gradient[0, 2] > gradient[0, 1] > gradient[0, 0]


def test_focal_without_gamma_is_cross_entropy_and_with_it_forgets_the_easy() -> None:
    logits, labels = drawn()
    torch.testing.assert_close(focal(logits, labels, 0.0), functional.cross_entropy(logits, labels))
    easy = torch.tensor([[math.log(9.0), 0.0]])
    expected = -(0.1**2) * math.log(0.9)
    assert focal(easy, torch.tensor([0]), 2.0).item() == pytest.approx(expected, rel=1e-4)
    sure = torch.tensor([[80.0, -80.0]], requires_grad=True)
    [gradient] = torch.autograd.grad(focal(sure, torch.tensor([0]), 0.5), sure)
    assert gradient.isfinite().all()


def test_adjusted_logits_are_cross_entropy_of_the_log_prior() -> None:
    logits, labels = drawn()
    counts = torch.tensor([20, 9, 1])
    loss = ClassLoss("logit_adjust", counts)
    expected = functional.cross_entropy(logits + (counts / 30).log(), labels)
    torch.testing.assert_close(loss(logits, labels), expected)
    assert ClassLoss("logit_adjust", torch.tensor([3, 0]))(logits[:, :2], labels * 0).isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_one_logit_is_the_second_of_two_classes(kind: Any) -> None:
    logits, labels = drawn(classes=2)
    loss = ClassLoss(kind, torch.tensor([25, 5]))
    single = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(loss(single, labels), loss(logits, labels))
    torch.testing.assert_close(as_classes(single).softmax(1)[:, 1], single.sigmoid())


@pytest.mark.parametrize("costs", [None, [[0, 1]], [[0, 1], [1, 0], [1, 1]], [[0, -1], [1, 0]]])
def test_a_matrix_that_does_not_fit_is_refused(costs: Any) -> None:
    with pytest.raises(ConfigError, match="cost"):
        ClassLoss("cost_matrix", torch.tensor([5, 5]), costs=costs)
