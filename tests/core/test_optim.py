"""The optimiser's groups and step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from galenic.core.errors import ConfigError
from galenic.core.optim import optimiser, parameter_groups, rate_factor
from galenic.core.schedule import Schedule


def test_each_trainable_parameter_is_in_one_group() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    module[0].weight.requires_grad_(False)
    groups = parameter_groups(module, Schedule(), {"2.weight": 3, "2.bias": 3, "1.weight": 1})
    found = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = [id(p) for p in module.parameters() if p.requires_grad]
    assert sorted(found) == sorted(wanted)


def test_an_unnamed_parameter_learns_at_full_rate() -> None:
    module = nn.ModuleDict({"net": nn.Linear(2, 2, bias=False), "head": nn.Linear(2, 2)})
    groups = parameter_groups(
        module, Schedule(lr=1.0, layer_decay=0.1), {"net.weight": 0, "net.last": 1}
    )
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(module["net"].weight)] == pytest.approx(0.1)
    assert rates[id(module["head"].weight)] == 1.0


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Nothing"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), Schedule())


def test_the_fused_step_is_adamw_as_published() -> None:
    """Against the formula of Loshchilov and Hutter (2019), in float64."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    expected = weight.detach().clone()
    module = nn.Module()
    module.weight = weight
    schedule = Schedule(lr=0.1, weight_decay=0.3)
    adam = optimiser(parameter_groups(module, schedule), schedule)
    first, second = torch.zeros_like(expected), torch.zeros_like(expected)
    for step in range(1, 6):
        gradient = torch.randn(3, 4, dtype=torch.float64)
        weight.grad = gradient.clone()
        adam.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected * (1 - 0.1 * 0.3) - 0.1 * move
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("warmup", [0.0, 0.25, 5])
def test_factors_stay_between_zero_and_one(warmup: float) -> None:
    factor = rate_factor(Schedule(warmup=warmup), 20)
    rates = [factor(step) for step in range(20)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = 0 if warmup == 0 else 5
    assert rates[peak] == 1.0 and rates[-1] < 0.02


def test_a_linear_decay_falls_by_the_same_step_down_to_its_floor() -> None:
    schedule = Schedule(lr=1.0, min_lr=0.01, warmup=5, decay="linear")
    rates = [rate_factor(schedule, 25)(step) for step in range(5, 26)]
    steps = {round(before - after, 12) for before, after in pairwise(rates)}
    assert rates[0] == 1.0 and rates[-1] == 0.01 and steps == {round(0.99 / 20, 12)}


def test_a_warmup_longer_than_the_training_only_rises() -> None:
    factor = rate_factor(Schedule(warmup=100), 10)
    rates = [factor(step) for step in range(10)]
    assert rates == sorted(rates) and rates[-1] < 0.2


def test_a_factor_of_the_rate_makes_a_group_of_its_own() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    rates = {"0.weight": 0.1, "0.bias": 0.1}
    depths = {name: int(name[0]) for name, _ in module.named_parameters()}
    schedule = Schedule(lr=1.0, layer_decay=0.5)
    groups = parameter_groups(module, schedule, depths, rates)
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [found[id(p)] for p in module.parameters()] == pytest.approx([0.05, 0.05, 1.0, 1.0])
