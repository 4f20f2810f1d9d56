"""Losses against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from galenic.objectives.classification import Classifier, target_loss


def test_unknown_labels_change_neither_loss_nor_gradient() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1]], requires_grad=True)
    labels = torch.tensor([[1.0, torch.nan], [torch.nan, 0.0]])
    loss = target_loss("multilabel", logits, labels)
    expected = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(0.1))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert logits.grad[1, 0] == 0


def test_batch_without_any_known_label_gives_zero() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = target_loss("multilabel", logits, torch.full((2, 2), torch.nan))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("classes", [2, 5])
def test_uniform_logits_cost_log_of_the_classes(classes: int) -> None:
    loss = target_loss("multiclass", torch.zeros(3, classes), torch.arange(3) % classes)
    assert loss.item() == pytest.approx(math.log(classes), rel=1e-6)


def test_continuous_targets_are_standardised_once() -> None:
    class Pass(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    objective = Classifier(Pass(), Pass(), "continuous", centre=10.0, spread=2.0)
    out = objective(labels=torch.tensor([12.0, 8.0]), x=torch.tensor([[1.0], [1.0]]))
    assert out["loss"].item() == pytest.approx((0.0 + 4.0) / 2)
    assert out["logits"].shape == (2,)


def test_two_classes_are_smoothed_as_one_or_as_two() -> None:
    logits, labels = torch.randn(7, 2), torch.randint(0, 2, (7,))
    two = target_loss("multiclass", logits, labels, label_smoothing=0.2)
    one = target_loss("binary", logits[:, 1] - logits[:, 0], labels.float(), label_smoothing=0.2)
    torch.testing.assert_close(one, two)
