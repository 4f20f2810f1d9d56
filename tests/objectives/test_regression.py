"""The loss of grades that are far off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from galenic.objectives.classification import Classifier
from galenic.objectives.regression import Huber


class Pass(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def slow(errors: np.ndarray, delta: float) -> float:
    terms = [e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2) for e in errors]
    return float(np.mean(terms))


@given(st.integers(0, 10_000), st.floats(0.1, 4))
def test_huber_is_the_plain_loop(seed: int, delta: float) -> None:
    said, true = np.random.default_rng(seed).normal(0, 3, (2, 9))
    found = Huber(delta=delta)(torch.from_numpy(said), torch.from_numpy(true))
    assert found.item() == pytest.approx(slow(said - true, delta), rel=1e-4)
    half = Huber(delta=delta)(torch.from_numpy(said).bfloat16(), torch.from_numpy(true))
    assert half.dtype == torch.float32


def test_one_wrong_grade_pulls_no_harder_than_delta() -> None:
    said = torch.tensor([0.0, 0.5, 30.0], requires_grad=True)
    Huber(delta=1.0)(said, torch.zeros(3)).backward()
    assert said.grad is not None
    torch.testing.assert_close(said.grad, torch.tensor([0.0, 0.5, 1.0]) / 3)


def test_delta_is_in_standard_deviations_of_the_training_grades() -> None:
    objective = Classifier(
        Pass(), Pass(), "continuous", centre=10.0, spread=2.0, class_loss=Huber(delta=1.0)
    )
    labels, outputs = torch.tensor([12.0, 4.0]), torch.tensor([[1.5], [0.0]])
    loss = objective(labels=labels, x=outputs)["loss"]
    assert loss.item() == pytest.approx(slow(np.array([0.5, 3.0]), 1.0))
    each = objective.costs(outputs[:, 0], labels)
    np.testing.assert_allclose(each, [slow(np.array([e]), 1.0) for e in (0.5, 3.0)])
