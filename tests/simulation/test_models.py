"""Metamodels, policies and gradients, against closed forms and slow references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError, SimulationError
from galenic.simulation import rollout, search, train
from galenic.simulation.controllers import (
    PID,
    Fraction,
    Given,
    Neural,
    NoControl,
    OpenLoop,
    Policy,
    straight_through,
)
from galenic.simulation.fitting import _path_error, fit, personalise, trajectory_error
from galenic.simulation.lift import beyond, evaluate, far_from_target
from galenic.simulation.lqr import best_cost
from galenic.simulation.metamodel import Metamodel, load, metamodel_of
from galenic.simulation.objective import Objective, objective_of
from galenic.simulation.rates import Polynomial, PowerLaw
from galenic.simulation.rollout import Paths, on_metamodel, on_twin, through_twin
from galenic.simulation.twin import Control, State, scales
from galenic.simulation.wolf_sheep import WolfSheep, WolfSheepRules

LIMITS = {"remove_sheep": 0.05, "remove_wolves": 0.1}
START = torch.tensor([[528.0, 104.0, 48.0]])
FAMILIES = ("mechanistic", "gma", "s_system", "polynomial_1", "polynomial_2")


@pytest.fixture
def twin() -> WolfSheep:
    return WolfSheep(WolfSheepRules(width=20, height=20, sheep=40, wolves=15))


def wished(twin: WolfSheep, **over: float) -> Objective:
    told = {"late": 0.5, "control_weight": 0.1, "penalty": 1.0} | over
    high = Fraction(twin.controls, LIMITS).high
    return objective_of(twin, {"sheep": 40.0}, alive=("wolves",), high=high, **told)


def known(twin: WolfSheep, family: str) -> Metamodel:
    """A metamodel with parameters of its own, small enough to be tame."""
    model = metamodel_of(twin, family)  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.rates.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draws)
        if isinstance(model.rates, Polynomial):
            model.rates.coefficients[:, 1:4] -= 0.1 * torch.eye(3)
            model.rates.coefficients[:, 0] += 0.1
    return model.eval()


def own_data(model: Metamodel, steps: int = 40) -> Paths:
    """Trajectories of the metamodel itself under patterns of control."""
    policy = Fraction(model.controls, LIMITS)
    u = rollout.patterns(policy, 8, steps, torch.Generator().manual_seed(0))
    starts = model.scale * (0.5 + torch.rand(8, 3, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        return Paths(model.trajectory(starts, u), u)


def network(twin: WolfSheep, steps: int) -> Neural:
    draws = torch.Generator().manual_seed(5)
    return Neural(twin.controls, LIMITS, scale=scales(twin), steps=steps, hidden=(4,), draws=draws)


# Metamodels ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_metamodel_is_found_again_from_its_own_data(twin: WolfSheep, family: str) -> None:
    truth = known(twin, family)
    data = own_data(truth)
    found = fit(metamodel_of(twin, family), data, iterations=150)  # type: ignore[arg-type]
    assert found.fit_error < 4e-3
    seen = data.x / truth.scale
    torch.testing.assert_close(found.rates(seen), truth.rates(seen), atol=5e-3, rtol=0.02)
    if family not in ("gma", "polynomial_2"):  # terms of these stand in for each other
        for name, parameter in truth.rates.named_parameters():
            given = dict(found.rates.named_parameters())[name]
            torch.testing.assert_close(given, parameter, atol=0.02, rtol=0.01)


def test_runge_kutta_is_of_fourth_order(twin: WolfSheep) -> None:
    model = known(twin, "mechanistic").double()
    u = torch.tensor([[0.0, 0.3, 0.2]], dtype=torch.float64)
    with torch.no_grad():
        model.rates.log_rates += 1.0

        def end(substeps: int) -> Tensor:
            model.substeps = substeps
            return model(START.double(), u)

        exact = end(256)
        errors = [(end(n) - exact).abs().max().item() for n in (4, 8, 16)]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 12 < coarse / fine < 20


def test_a_removed_share_is_what_the_twin_removes(twin: WolfSheep) -> None:
    model = metamodel_of(twin, "polynomial_1")  # nothing happens but the control
    u = torch.tensor([[0.0, 0.25, 1.0]])
    torch.testing.assert_close(model(START, u), START * (1 - u))


def test_an_addition_adds() -> None:
    states = (State("a", "mg", 5.0),)
    controls = (Control("give", "mg per h", 10.0, adds=("a",)),)
    model = Metamodel("polynomial_1", Polynomial(1, 1), states, controls, dt=0.5, time_unit="h")
    torch.testing.assert_close(
        model(torch.tensor([[2.0]]), torch.tensor([[3.0]])), torch.tensor([[5.0]])
    )


@pytest.mark.parametrize("terms", [1, 2])
def test_power_laws_keep_counts_above_zero(terms: int) -> None:
    rates = PowerLaw(3, terms)
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    for place in range(3):
        low = x.clone()
        low[:, place] = 0.0
        # With the state gone its losses are gone, but for the floor under the logarithm.
        assert bool((rates(low)[:, place] > -1e-6).all())


def test_a_loss_that_does_not_fade_is_refused_and_brought_back() -> None:
    rates = PowerLaw(3, 2)
    with torch.no_grad():
        rates.loss_powers[1, 0, 1] = -0.2
    with pytest.raises(SimulationError, match=r"exponent is -0\.2"):
        rates.check()
    rates.project()
    rates.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_json_gives_the_same_metamodel(twin: WolfSheep, family: str, tmp_path: Path) -> None:
    model = known(twin, family)
    model.fit_error = 0.25
    again = load(model.save(tmp_path / "m.json"), twin)
    u = torch.full((1, 3), 0.02)
    assert torch.equal(again(START, u), model(START, u))
    assert again.fit_error == 0.25
    assert len(model.document()["equations"]) >= 3


def test_json_of_another_twin_or_with_bad_exponents_is_refused(
    twin: WolfSheep, tmp_path: Path
) -> None:
    path = known(twin, "s_system").save(tmp_path / "m.json")
    with pytest.raises(ConfigError, match="another twin"):
        load(path, WolfSheep())
    model = known(twin, "s_system")
    with torch.no_grad():
        model.rates.loss_powers[0, 0, 0] = -1.0
    with pytest.raises(SimulationError, match="exponent"):
        load(model.save(path), twin)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="no metamodel"):
        load(path, twin)


def test_a_patient_gets_parameters_of_his_own(twin: WolfSheep) -> None:
    crowd, patient = metamodel_of(twin, "mechanistic"), metamodel_of(twin, "mechanistic")
    with torch.no_grad():
        patient.rates.log_rates[4] += 0.5
    data = own_data(patient, steps=30)
    before = {name: p.clone() for name, p in crowd.named_parameters()}
    own = personalise(crowd, data, pull=1e-6)
    assert own.fit_error < 0.1 * trajectory_error(crowd, data)
    torch.testing.assert_close(own.rates.log_rates, patient.rates.log_rates, atol=0.1, rtol=0.1)
    assert all(torch.equal(p, before[name]) for name, p in crowd.named_parameters())


def test_a_fit_refuses_negative_and_missing_counts(twin: WolfSheep) -> None:
    data = own_data(known(twin, "mechanistic"))
    for value, word in ((-1.0, "-1"), (float("nan"), "nan")):
        x = data.x.clone()
        x[2, 3, 1] = value
        with pytest.raises(SimulationError, match=word):
            fit(metamodel_of(twin, "mechanistic"), Paths(x, data.u))


@pytest.mark.parametrize("steps", [1, 24, 25, 26, 49, 51, 75])
def test_every_step_of_a_series_is_fitted_about_as_often(twin: WolfSheep, steps: int) -> None:
    model = known(twin, "mechanistic")
    data = own_data(model, steps)
    told = (data.x + 1).requires_grad_()
    # Against data that are off everywhere alike, a fit pulls wherever it looks.
    _path_error(model, Paths(told, data.u), 25).backward()
    assert told.grad is not None
    pull = (told.grad * model.scale).abs().sum((0, 2))[1:]
    assert bool((pull > 0).all())
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    _path_error(model, data, 25)
    assert len(seen) <= 25
    assert steps * len(data.x) <= sum(seen) < (steps + 3) * len(data.x)


def test_running_away_is_an_error(twin: WolfSheep) -> None:
    model = metamodel_of(twin, "polynomial_2")
    with torch.no_grad():
        model.rates.coefficients.fill_(50.0)
    with pytest.raises(SimulationError, match="runs away"):
        on_metamodel(model, NoControl(twin.controls, LIMITS), START, 20)
    with pytest.raises(SimulationError, match="infinity"):
        model.trajectory(START, torch.zeros(1, 20, 3))


@pytest.mark.parametrize("count", [-2000.0, -1e6, -1e12])
@pytest.mark.parametrize(("alive", "penalty"), [((), 0.0), ((), 1.0), (("grass",), 1.0)])
def test_j_is_a_number_far_below_zero(
    twin: WolfSheep, count: float, alive: tuple[str, ...], penalty: float
) -> None:
    goal = objective_of(
        twin, {"sheep": 104.0}, alive=alive, high=torch.ones(3), late=0.5,
        control_weight=0.0, penalty=penalty,
    )  # fmt: skip
    x = START.repeat(1, 5, 1)
    x[:, 3, 0] = count
    x.requires_grad_()
    cost = goal(x, torch.zeros(1, 4, 3))
    assert cost.item() == 0.0
    cost.sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())


# Gradients -------------------------------------------------------------------------------


def test_gradient_of_j_equals_finite_differences(twin: WolfSheep) -> None:
    model, policy = known(twin, "mechanistic").double(), network(twin, 20).double()
    goal = wished(twin, penalty=0.0)

    def cost() -> Tensor:
        found = on_metamodel(model, policy, START.double(), 20)
        return goal(found.x, found.u).mean()

    cost().backward()
    step = 1e-5
    for parameter in policy.parameters():
        flat, slope = parameter.data.view(-1), parameter.grad.view(-1)  # type: ignore[union-attr]
        for place in range(0, len(flat), 5):
            kept = flat[place].item()
            ends = []
            for sign in (1, -1):
                flat[place] = kept + sign * step
                ends.append(cost().item())
            flat[place] = kept
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(
                slope[place].item(), rel=1e-4, abs=1e-9
            )


def test_checkpoints_change_no_gradient(twin: WolfSheep, monkeypatch: pytest.MonkeyPatch) -> None:
    model, policy, goal = known(twin, "mechanistic"), network(twin, 20), wished(twin)
    grads = []
    for chunk in (200, 6):
        monkeypatch.setattr(rollout, "CHUNK", chunk)
        policy.zero_grad()
        found = on_metamodel(model, policy, START, 20)
        goal(found.x, found.u).mean().backward()
        grads.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_straight_through_is_the_hard_model_forward(twin: WolfSheep) -> None:
    model, policy = known(twin, "mechanistic"), network(twin, 15)
    soft = through_twin(twin, model, policy, [1, 2, 3], 15)
    hard = on_twin(twin, policy, [1, 2, 3], 15)
    assert torch.equal(soft.x.detach(), hard.x)
    assert torch.equal(soft.u.detach(), hard.u)
    wished(twin)(soft.x, soft.u).mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in policy.parameters())


def test_straight_through_has_the_gradient_of_the_soft_value() -> None:
    soft = torch.tensor([0.3, -1.2], requires_grad=True)
    made = straight_through(torch.round(soft), soft**2)
    assert torch.equal(made, torch.round(soft))
    made.sum().backward()
    torch.testing.assert_close(soft.grad, 2 * soft.detach())


def test_the_learned_plan_is_that_of_riccati() -> None:
    states = (State("a", "mg", 2.0), State("b", "mg", 1.0))
    controls = (
        Control("p", "mg per h", 4.0, low=-4.0, adds=("a",)),
        Control("q", "mg per h", 4.0, low=-4.0, adds=("b",)),
    )
    rates = Polynomial(2, 1)
    with torch.no_grad():
        rates.coefficients.copy_(torch.tensor([[0, -0.1, 0.2], [0, -0.2, 0.05]]))
    model = Metamodel("polynomial_1", rates, states, controls, dt=0.5, time_unit="h")
    model.requires_grad_(False)
    steps, start = 25, torch.tensor([2.0, -1.0])
    goal = Objective(
        target=torch.zeros(2),
        scale=model.scale,
        high=torch.tensor([4.0, 4.0]),
        late=1.0,
        control_weight=2.0,
        alive=torch.zeros(2, dtype=torch.bool),
        penalty=0.0,
    )
    policy = OpenLoop(controls, {"p": 4.0, "q": 4.0}, steps)
    cost = train.through_metamodel(
        model, policy, goal, start[None], steps=steps, epochs=150, lr=0.08
    )
    best = best_cost(model, goal, start, steps).item()
    assert best * (1 - 1e-5) <= cost[-1] <= best * 1.01


def test_training_lowers_j_through_both_models(twin: WolfSheep) -> None:
    model, goal = known(twin, "mechanistic"), wished(twin)
    policy = network(twin, 20)
    through = train.through_metamodel(model, policy, goal, START, steps=20, epochs=15, lr=0.05)
    assert through[-1] < through[0]
    direct = train.through_hard_model(
        twin, model, network(twin, 20), goal, list(range(24)), steps=20, epochs=6, lr=0.05
    )
    assert len(direct) == 6


@pytest.mark.parametrize(
    "broken",
    [
        lambda x, u: x * 1e25,
        # The root is a number at 0, its slope is not.
        lambda x, u: x + (0 * u.sum()).sqrt(),
    ],
    ids=["J", "gradient"],
)
def test_training_stops_where_j_or_its_gradient_leaves_the_numbers(
    twin: WolfSheep, broken: Callable[[Tensor, Tensor], Tensor]
) -> None:
    policy = OpenLoop(twin.controls, LIMITS, 2)

    def paths(epoch: int) -> Paths:
        x, u = START.repeat(1, 3, 1), policy.plan[None]
        return Paths(broken(x, u) if epoch == 1 else x, u)

    with pytest.raises(SimulationError, match="runs away in epoch 2"):
        train.descend(policy, paths, wished(twin), epochs=3, lr=0.1)


# Policies --------------------------------------------------------------------------------


def every_policy(twin: WolfSheep) -> list[Policy]:
    return [
        NoControl(twin.controls, LIMITS),
        Fraction(twin.controls, LIMITS),
        network(twin, 10),
        OpenLoop(twin.controls, LIMITS, 10),
        PID(twin.controls, LIMITS, state=1, target=40.0, scale=26.0),
    ]


@pytest.mark.parametrize("size", [0.0, 3.0, 100.0])
def test_controls_are_always_within_their_limits(twin: WolfSheep, size: float) -> None:
    high = torch.tensor([0.0, 0.05, 0.1])
    for policy in every_policy(twin):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.copy_(size * torch.randn(parameter.shape))
        policy.begin(4)
        for moment in range(10):
            u = policy(torch.rand(4, 3) * 1000, moment)
            assert bool(((u >= 0) & (u <= high)).all()), type(policy).__name__


def test_a_parameter_at_its_bound_can_come_back(twin: WolfSheep) -> None:
    policy = Fraction(twin.controls, LIMITS)
    nn.init.constant_(policy.theta, 1.5)
    policy(START, 0).sum().backward()
    assert policy.theta.grad is not None and policy.theta.grad.tolist() == pytest.approx(
        [0, 0.05, 0.1]
    )


def test_pid_is_the_sum_of_its_actions(twin: WolfSheep) -> None:
    policy = PID(twin.controls, LIMITS, state=1, target=40.0, scale=10.0)
    gains = torch.tensor([[0.0, 0, 0.2], [0.0, 0, 0.3], [0.0, 0, 0.1]])
    with torch.no_grad():
        policy.gains.copy_(gains)
    policy.begin(1)
    counts = [30.0, 35.0, 20.0]
    got = [policy(torch.tensor([[0.0, x, 0.0]]), t)[0, 2].item() for t, x in enumerate(counts)]
    total, last, expected = 0.0, None, []
    for x in counts:
        error = (40 - x) / 10
        total += error
        slope = 0.0 if last is None else error - last
        last = error
        expected.append(min(max((0.2 * error + 0.3 * total / 10 + 0.1 * slope) * 0.1, 0), 0.1))
    assert got == pytest.approx(expected)


# Search and lift -------------------------------------------------------------------------


def bowl(policy: Policy, middle: float) -> float:
    return sum(float((p.detach() - middle).square().sum()) for p in policy.parameters())


def test_the_grid_finds_the_best_of_its_points(twin: WolfSheep) -> None:
    policy = Fraction(twin.controls, LIMITS)
    assert search.best_constant(policy, lambda: bowl(policy, 0.6), 9) == 9
    assert policy.theta[1:].tolist() == [0.5, 0.5]
    with pytest.raises(ConfigError, match="no grid"):
        search.best_constant(policy, lambda: 0.0, 3)


def test_evolution_keeps_to_its_trials_and_to_the_best(twin: WolfSheep) -> None:
    pytest.importorskip("cma")
    policy = Fraction(twin.controls, LIMITS)
    seen: list[float] = []

    def cost() -> float:
        seen.append(bowl(policy, 0.6))
        return seen[-1]

    assert search.evolve(policy, cost, 60, seed=1) == len(seen) <= 60
    assert bowl(policy, 0.6) == pytest.approx(min(seen), abs=1e-6)
    assert min(seen) < 0.1 * bowl(Fraction(twin.controls, LIMITS), 0.6)


def test_held_out_seeds_are_disjoint(twin: WolfSheep) -> None:
    policy = NoControl(twin.controls, LIMITS)
    with pytest.raises(SimulationError, match="2 of 3 held-out seeds"):
        evaluate(twin, policy, wished(twin), [5, 6, 7], steps=2, seen=range(7))


def test_figures_are_those_of_a_loop(twin: WolfSheep) -> None:
    goal = wished(twin)
    u = torch.tensor([0.0, 0.05, 0.1]).expand(6, 30, 3)
    found = evaluate(twin, Given(twin.controls, u), goal, list(range(6)), steps=30, seen=[])
    for run in range(6):
        x = found.paths.x[run]
        late = [((x[t, 1].item() - 40) / goal.scale[1].item()) ** 2 for t in range(16, 31)]
        miss = sum(late) / len(late)
        lost = float(x[-1, 2] == 0)
        assert found.figures["target_error"][run].item() == pytest.approx(miss, rel=1e-5)
        assert found.figures["control_energy"][run].item() == pytest.approx(2.0)
        assert found.figures["extinction_rate"][run].item() == lost
        cost = miss + 0.1 * 2 + lost
        assert found.figures["control_cost"][run].item() == pytest.approx(cost, rel=1e-5)


def test_extrapolation_and_missed_targets_are_named(twin: WolfSheep) -> None:
    model, goal = known(twin, "mechanistic"), wished(twin)
    model.reach = (torch.zeros(3), torch.tensor([0.0, 0.02, 0.1]))
    u = torch.tensor([0.0, 0.05, 0.1]).expand(2, 10, 3)
    assert beyond(model, u) == ["remove_sheep"]
    x = torch.full((2, 11, 3), 30.0)
    assert far_from_target(goal, Paths(x, u)).tolist() == [False, True, False]
    x[..., 1] = 41.0
    assert far_from_target(goal, Paths(x, u)).tolist() == [False, False, False]


@pytest.mark.parametrize(
    ("targets", "alive", "match"),
    [
        ({"lions": 3.0}, (), "lions"),
        ({"sheep": -1.0}, (), "-1"),
        ({"sheep": float("nan")}, (), "nan"),
        ({}, (), "No target"),
        ({"sheep": 1.0}, ("lions",), "lions"),
    ],
)
def test_a_senseless_wish_is_refused(
    twin: WolfSheep, targets: dict, alive: tuple, match: str
) -> None:
    with pytest.raises((ConfigError, SimulationError), match=match):
        objective_of(
            twin, targets, alive=alive, high=torch.ones(3), late=1.0, control_weight=0, penalty=0
        )
