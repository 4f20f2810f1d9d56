"""The policy's gradient against an integral, its mask, its base; weights averaged over epochs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.core.averaging import LastEpochs, average
from galenic.core.errors import ConfigError
from galenic.models.backbone import open_backbone
from galenic.models.beta_policy import BetaPolicy, UniformPolicy
from galenic.objectives.classification import Classifier
from galenic.objectives.imbalance import ClassLoss
from galenic.objectives.noise_mask import NoiseMasked, blur, draw, gaussian, log_density


class Given(nn.Module):
    """The same log-parameters for every picture."""

    def __init__(self, logs: Tensor) -> None:
        super().__init__()
        self.logs = nn.Parameter(logs)
        self.register_buffer("base", logs.clone())

    def forward(self, pictures: Tensor) -> Tensor:
        return self.logs.expand(len(pictures), -1, -1)


class Flat(nn.Module):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.flatten(1)


def classifier(pixels: int = 4, classes: int = 2) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Flat(), nn.Linear(pixels, classes), "multiclass")


def masked(policy: nn.Module, **options) -> NoiseMasked:
    made = NoiseMasked(
        options.pop("classifier", None) or classifier(), policy, key="pixel_values",
        **{"kernel": 1, "sigma": 1.0, **options},
    )  # fmt: skip
    return made.train()


PICTURE = torch.tensor([[[[1.5, -2.0], [3.0, 0.5]]]])
LOGS = torch.tensor([[[0.5, 0.9, 0.3, 0.7], [0.8, 0.4, 0.6, 0.2]]])


def integrated() -> Tensor:
    """Gradient of the expected cross-entropy by the log-parameters: 24 nodes a cell."""
    logs = LOGS.double().requires_grad_()
    nodes, weights = np.polynomial.legendre.leggauss(24)
    places, sizes = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    density = torch.stack(
        [
            torch.distributions.Beta(logs[0, 0, j].exp(), logs[0, 1, j].exp())
            .log_prob(places)
            .exp()
            * sizes
            for j in range(4)
        ]
    )
    combos = torch.tensor(list(itertools.product(range(24), repeat=4)))
    chance = torch.stack([density[j][combos[:, j]] for j in range(4)]).prod(dim=0)
    model = classifier().double()
    logits = model.head(places[combos] * PICTURE.flatten().double())
    costs = functional.cross_entropy(logits, torch.ones(len(combos)).long(), reduction="none")
    (chance * costs.detach()).sum().backward()
    assert chance.sum().item() == pytest.approx(1, abs=1e-3)
    return logs.grad


def sampled(baseline: str, batches: int = 100, size: int = 1000) -> Tensor:
    """Gradients [batches, 2, 4] of the policy."""
    found = []
    policy = Given(LOGS.clone())
    objective = masked(policy, baseline=baseline)
    pictures, labels = PICTURE.expand(size, -1, -1, -1), torch.ones(size).long()
    torch.manual_seed(1)
    for _ in range(batches):
        policy.logs.grad = None
        objective(labels=labels, pixel_values=pictures)["loss"].backward()
        found.append(policy.logs.grad[0].clone())
    return torch.stack(found)


@pytest.mark.parametrize("baseline", ["none", "ema", "batch"])
def test_policy_gradient_is_that_of_the_expected_loss(baseline: str) -> None:
    exact, found = integrated()[0], sampled(baseline)
    error = found.std(dim=0) / len(found) ** 0.5
    assert (found.mean(dim=0) - exact).abs().div(error).max() < 3.5
    # Not because everything is within noise of zero.
    assert exact.abs().div(error).max() > 20


def test_baseline_lowers_the_variance() -> None:
    plain = sampled("none").var(dim=0).sum()
    assert sampled("batch").var(dim=0).sum() < 0.8 * plain
    assert sampled("ema").var(dim=0).sum() < 0.8 * plain


def test_no_gradient_crosses() -> None:
    policy = Given(LOGS.clone())
    objective = masked(policy, baseline="batch")
    torch.manual_seed(3)
    # One picture: its gain over the baseline is zero, and nothing else may reach the policy.
    objective(labels=torch.tensor([1]), pixel_values=PICTURE)["loss"].backward()
    assert torch.equal(policy.logs.grad, torch.zeros_like(LOGS))
    torch.manual_seed(3)
    seen = PICTURE * objective.mask(draw(LOGS), (2, 2))
    plain = classifier()
    plain(labels=torch.tensor([1]), pixel_values=seen)["loss"].backward()
    found = objective.classifier.head.weight.grad
    torch.testing.assert_close(found, plain.head.weight.grad, rtol=0, atol=0)


def test_costs_average_to_the_loss() -> None:
    for kind, logits, labels in (
        ("binary", torch.randn(6), torch.tensor([0, 1, 1, 0, 1, 0])),
        ("multiclass", torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])),
        ("multilabel", torch.randn(6, 2), torch.randint(0, 2, (6, 2)).float()),
        ("continuous", torch.randn(6), torch.randn(6)),
    ):
        model = Classifier(nn.Identity(), nn.Identity(), kind, centre=0.5, spread=2.0)
        costs = model.costs(logits, labels)
        whole = model._loss(logits, labels)
        assert costs.shape == (6,)
        torch.testing.assert_close(costs.mean(), whole)


@pytest.mark.parametrize("kind", ["weighted", "effective", "focal", "logit_adjust", "cost_matrix"])
def test_costs_of_weighed_classes_average_to_the_loss(kind: Any) -> None:
    matrix = [[0, 1, 5], [1, 0, 1], [9, 1, 0]] if kind == "cost_matrix" else None
    loss = ClassLoss(kind, torch.tensor([100, 10, 1]), costs=matrix)
    model = Classifier(nn.Identity(), nn.Identity(), "multiclass", class_loss=loss)
    logits, labels = torch.randn(7, 3), torch.tensor([0, 0, 0, 0, 1, 1, 2])
    torch.testing.assert_close(model.costs(logits, labels).mean(), model._loss(logits, labels))


def test_logsumexp_is_the_product_and_never_turns_the_classifier_round() -> None:
    policy = Given(LOGS.clone())
    objective = masked(policy, estimator="logsumexp")
    torch.manual_seed(3)
    labels, pictures = torch.tensor([1, 0]), PICTURE.repeat(2, 1, 1, 1)
    objective(labels=labels, pixel_values=pictures)["loss"].backward()
    torch.manual_seed(3)
    logs = LOGS.clone().requires_grad_()
    cells = draw(logs.expand(2, -1, -1))
    plain = classifier()
    cost = plain(labels=labels, pixel_values=pictures * cells.view(2, 1, 2, 2))["loss"]
    factor = log_density(logs.expand(2, -1, -1), cells).exp().sum(dim=-1).log().mean()
    (factor * cost).backward()
    torch.testing.assert_close(policy.logs.grad, logs.grad)
    torch.testing.assert_close(objective.classifier.head.weight.grad, plain.head.weight.grad)
    # A density below 1 in every cell: the product would now reward a large cross-entropy.
    low = Given(torch.full((1, 2, 4), 4.0))
    turned = masked(low, estimator="logsumexp")
    unlikely = torch.full((2, 4), 0.9)
    assert log_density(low.logs.expand(2, -1, -1), unlikely).logsumexp(-1).max() < 0
    cost = turned.classifier(labels=labels, pixel_values=pictures)["loss"]
    turned._loss(cost, cost.detach().expand(2), low(pictures), unlikely).backward()
    assert torch.equal(turned.classifier.head.weight.grad, torch.zeros(2, 4))
    assert low.logs.grad.abs().sum() > 0


def test_densities_multiply_and_stay_finite() -> None:
    cells = draw(LOGS)
    first, second = LOGS[0].exp()
    every = [
        torch.distributions.Beta(a, b).log_prob(x).exp()
        for a, b, x in zip(first, second, cells[0], strict=True)
    ]
    torch.testing.assert_close(log_density(LOGS, cells).sum(), torch.stack(every).prod().log())
    wild = torch.tensor([[[-1e4, 1e4, -1e4, 0.0], [1e4, 1e4, -1e4, 0.0]]])
    for _ in range(50):
        cells = draw(wild)
        assert ((cells > 0) & (cells < 1)).all()
        assert log_density(wild, cells).isfinite().all()


def test_mask_is_smooth_and_within_bounds() -> None:
    objective = masked(UniformPolicy(4), kernel=13, sigma=6.0)
    mask = objective.mask(draw(objective.policy(torch.zeros(5, 1, 32, 32))), (32, 32))
    assert mask.shape == (5, 1, 32, 32)
    assert ((mask > 0) & (mask < 1)).all()
    constant = torch.full((1, 1, 20, 24), 0.3)
    torch.testing.assert_close(blur(constant, gaussian(13, 6.0)), constant)
    sharp = objective.mask(draw(torch.full((1, 2, 16), 50.0)), (32, 32))
    assert (sharp - 0.5).abs().max() < 0.1
    # Against a double loop, in the middle.
    picture, taps = torch.rand(1, 1, 9, 9), gaussian(5, 1.5)
    slow = sum(
        picture[0, 0, 4 + i, 4 + j] * taps[i + 2] * taps[j + 2]
        for i in range(-2, 3)
        for j in range(-2, 3)
    )
    torch.testing.assert_close(blur(picture, taps)[0, 0, 4, 4], slow)
    with pytest.raises(ConfigError, match="no middle"):
        gaussian(12, 6.0)


def policy(seed: int = 0) -> BetaPolicy:
    encoder = open_backbone("builtin:resnet10?width=2", size=32)
    return BetaPolicy(encoder, grid=4, generator=torch.Generator().manual_seed(seed))


def test_base_moves_once_a_step_in_training_alone() -> None:
    made, pictures = policy(), torch.randn(3, 3, 32, 32)
    assert ((made.base >= 0) & (made.base <= 1)).all()
    objective = masked(made, classifier=classifier(3 * 32 * 32))
    before = made.base.clone()
    objective.eval()
    objective(pixel_values=pictures, labels=torch.tensor([0, 1, 0]))
    assert torch.equal(made.base, before)
    objective.train()
    logs = made(pictures)
    own = (logs - 0.9 * before) / 0.1
    torch.testing.assert_close(made.base, 0.99 * before + 0.01 * own.mean(dim=0).detach())
    before = made.base.clone()
    made(pictures[:1])
    assert torch.equal(made.base, before)


def test_evaluation_draws_one_mask_for_all_and_leaves_the_random_state() -> None:
    objective = masked(policy(), classifier=classifier(3 * 32 * 32)).eval()
    pictures = torch.randn(4, 3, 32, 32)
    state = torch.random.get_rng_state()
    whole = objective(pixel_values=pictures)["logits"]
    assert torch.equal(torch.random.get_rng_state(), state)
    each = torch.cat([objective(pixel_values=one[None])["logits"] for one in pictures])
    torch.testing.assert_close(whole, each)


def test_average_of_the_last_epochs(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    kept = LastEpochs(module, tmp_path / "last", last=2, epoch=4)
    for step in range(1, 13):
        with torch.no_grad():
            module[0].weight.fill_(step)
            module[1].num_batches_tracked.fill_(step)
        kept.after_step(step, 12)
    for _ in range(2):
        # A run that was killed behind its training is averaged again.
        kept.put()
        assert module[0].weight.unique().tolist() == [10.0]
        assert module[1].num_batches_tracked.item() == 12
    same = {"a": torch.rand(3), "n": torch.tensor(7)}
    found = average([same, same, same])
    assert all(torch.equal(found[name], value) for name, value in same.items())
