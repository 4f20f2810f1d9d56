"""Twins: seeds, counts that balance, controls within bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from galenic.core.errors import ConfigError, DataError, SimulationError
from galenic.simulation import _draws
from galenic.simulation.builtin import open_twin
from galenic.simulation.metabolic import Metabolic, MetabolicRules
from galenic.simulation.twin import (
    Control,
    MesaTwin,
    State,
    Twin,
    bounds,
    checked_twin,
)
from galenic.simulation.wolf_sheep import HEADINGS, WolfSheep, WolfSheepRules

SMALL = WolfSheepRules(width=12, height=9, sheep=30, wolves=10, regrowth=5)


def twins() -> list[Twin]:
    return [WolfSheep(SMALL), Metabolic(MetabolicRules(substrate=900, product=200, by_product=90))]


def steered(twin: Twin, seeds: list[int], share: float, steps: int = 25) -> Tensor:
    high = bounds(twin.controls)[1]
    seen = [twin.reset(seeds)]
    seen += [twin.step((share * high).expand(len(seeds), -1)) for _ in range(steps)]
    return torch.stack(seen, 1)


@pytest.mark.parametrize("twin", twins(), ids=lambda twin: twin.name)
@pytest.mark.parametrize("share", [0.0, 0.03])
def test_same_seed_same_trajectory(twin: Twin, share: float) -> None:
    first = steered(twin, [4, 5], share)
    assert torch.equal(first, steered(twin, [4, 5], share))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("twin", twins(), ids=lambda twin: twin.name)
@pytest.mark.parametrize("share", [0.0, 0.03])
def test_a_run_depends_on_its_own_seed_alone(twin: Twin, share: float) -> None:
    alone = steered(twin, [7], share)
    assert torch.equal(alone[0], steered(twin, [1, 2, 7, 3], share)[2])


def test_no_control_is_the_uncontrolled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = steered(WolfSheep(SMALL), [1, 2, 3], 0.0)
    monkeypatch.setattr(WolfSheep, "_remove", lambda self, amounts: None)
    assert torch.equal(zero, steered(WolfSheep(SMALL), [1, 2, 3], 1.0))


@pytest.mark.parametrize("twin", twins(), ids=lambda twin: twin.name)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_births_deaths_and_removals_are_the_change(twin: Twin, seed: int, share: float) -> None:
    before = twin.reset([seed, seed + 1])
    high = bounds(twin.controls)[1]
    for _ in range(12):
        after = twin.step((share * high).expand(2, -1))
        events = twin.events
        assert all(bool((part >= 0).all()) for part in events.values())
        change = events["births"] - events["deaths"] - events["removed"]
        assert torch.equal(after - before, change.float())
        assert bool((after >= 0).all())
        before = after


def test_counts_are_those_of_the_agents_and_cells() -> None:
    twin = WolfSheep(SMALL)
    twin.reset([3, 4, 5])
    for _ in range(30):
        counts = twin.step(torch.tensor([0.02, 0.03, 0.01]).expand(3, 3))
        grown = (twin._ready <= twin.tick).reshape(3, -1).sum(1)
        herds = [
            torch.bincount(h.cell // twin.area, minlength=3) for h in (twin._sheep, twin._wolves)
        ]
        assert torch.equal(counts, torch.stack([grown, *herds], 1).float())
        assert bool((twin._sheep.energy >= 0).all())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_removing_all_empties_the_class_in_one_step(place: int) -> None:
    twin = WolfSheep(SMALL)
    twin.reset([0, 1])
    counts = twin.step(torch.eye(3)[place].expand(2, 3))
    assert counts[:, place].tolist() == [0, 0]


def test_a_share_is_rounded_to_whole_agents() -> None:
    twin = WolfSheep(SMALL)
    before = twin.reset([0, 1, 2])
    u = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.01, 0.0], [0.0, 0.11, 0.3]])
    twin.step(u)
    asked = torch.round(u.double() * before)
    assert torch.equal(twin.events["removed"][:, 1:].double(), asked[:, 1:])


def test_agents_walk_to_a_neighbour_on_the_torus() -> None:
    twin = WolfSheep(replace(SMALL, wolves=0, sheep_breed=0.0))
    twin.reset([1])
    before = twin._sheep.cell.clone()
    twin._walk(twin._sheep)
    x, y = before % 12, before // 12
    heading = twin._sheep.heading.tolist()
    dx, dy = torch.tensor([HEADINGS[h] for h in heading]).unbind(1)
    assert torch.equal(twin._sheep.cell, (y + dy) % 9 * 12 + (x + dx) % 12)


def test_in_every_cell_as_many_sheep_are_eaten_as_wolves_can() -> None:
    twin = WolfSheep(SMALL)
    twin.reset([11])
    draws = torch.Generator().manual_seed(11)
    twin._sheep.cell = torch.randint(0, 6, twin._sheep.cell.shape, generator=draws)
    twin._wolves.cell = torch.randint(0, 9, twin._wolves.cell.shape, generator=draws)
    fed, prey = twin._meals()
    cells = [torch.bincount(part, minlength=9) for part in (twin._sheep.cell, twin._wolves.cell)]
    for who, eaten in ((twin._wolves.cell[fed], fed), (twin._sheep.cell[prey], prey)):
        assert torch.equal(torch.bincount(who, minlength=9), torch.minimum(*cells))
        assert len(set(eaten.tolist())) == len(eaten)


def test_grass_grows_back_after_its_time() -> None:
    twin = WolfSheep(replace(SMALL, sheep=0, wolves=0, regrowth=4))
    twin.reset([0])
    grass = [int(twin.step(torch.tensor([[float(t == 8), 0, 0]]))[0, 0]) for t in range(15)]
    assert grass[7:] == [108, 0, 0, 0, 0, 0, 108, 108]


def test_binomial_particles_have_their_mean() -> None:
    twin = Metabolic()
    twin.reset(range(300))
    after = twin.step(torch.zeros(300, 2))
    made = 750 * 80_000 / 100_000
    assert after[:, 0].mean().item() == pytest.approx(80_000 - made, abs=6)


def test_chosen_takes_so_many_of_each_group_and_each_as_often() -> None:
    group = torch.tensor([0, 1, 1, 0, 1, 2] * 500)
    counts = torch.tensor([3, 700, 0])
    keys = _draws.mix(torch.arange(len(group)))
    taken = _draws.chosen(keys, group, counts)
    assert torch.equal(torch.bincount(group[taken], minlength=3), counts)
    assert torch.equal(taken, _draws.chosen(keys, group, counts))


def test_draws_are_even() -> None:
    keys = _draws.spread(_draws.root([5], "x"), 200_000).reshape(-1)
    for _ in range(3):
        keys = _draws.advance(keys)
        assert _draws.chance(keys, 0.04).double().mean() == pytest.approx(0.04, abs=0.002)
        turns = _draws.turn(keys)
        assert turns.double().mean() == pytest.approx(0, abs=0.004)
        assert (turns != 0).double().mean() == pytest.approx(0.25, abs=0.004)
        assert _draws.uniform(_draws.mix(keys)).mean() == pytest.approx(0.5, abs=0.003)
        assert (_draws.order(keys) > 0).double().mean() == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize(
    ("u", "match"),
    [
        (torch.zeros(2, 2), "shape"),
        (torch.full((2, 3), 1.5), "1.5"),
        (torch.full((2, 3), float("nan")), "nan"),
        (torch.full((2, 3), -0.1), "-0.1"),
    ],
)
def test_bad_control_is_refused(u: Tensor, match: str) -> None:
    twin = WolfSheep(SMALL)
    before = twin.reset([0, 1])
    with pytest.raises(SimulationError, match=match):
        twin.step(u)
    assert torch.equal(before, twin._counts.float())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"states": (State("a", "", 1.0),)}, "no unit"),
        ({"dt": 0.0}, "step"),
        ({"time_unit": ""}, "no unit"),
        ({"controls": (Control("c", "share", 1.0, low=0.5),)}, "goes from"),
        ({"states": (State("a", "cells", 0.0),)}, "scale"),
    ],
)
def test_units_and_bounds_are_mandatory(change: dict, match: str) -> None:
    good = {
        "name": "own",
        "states": (State("a", "cells", 1.0),),
        "controls": (Control("c", "share", 1.0, removes=("a",)),),
        "dt": 1.0,
        "time_unit": "h",
    }
    with pytest.raises((ConfigError, SimulationError), match=match):
        MesaTwin(lambda seed: None, lambda m: [0], lambda m, u: None, **{**good, **change})


def test_an_effect_on_an_unknown_state_is_refused() -> None:
    twin = WolfSheep(SMALL)
    twin.controls = (Control("c", "share", 1.0, removes=("lions",)),)
    with pytest.raises(SimulationError, match="lions"):
        checked_twin(twin)


@pytest.mark.parametrize(
    ("source", "rules", "match", "kind"),
    [
        ("twin:wolf_shep", {}, "wolf_sheep", DataError),
        ("nothing.csv", {}, "nothing.csv", DataError),
        ("twin:wolf_sheep", {"widht": 3}, "width", ConfigError),
        ("twin:wolf_sheep", {"sheep": 2.5}, "2.5", ConfigError),
        ("twin:wolf_sheep", {"wolf_gain": -1}, "wolf_gain=-1", ConfigError),
        ("twin:metabolic", {"rate": float("nan")}, "'rate' is nan", ConfigError),
        ("twin:metabolic", {"inflow": float("inf")}, "'inflow' is inf", ConfigError),
        ("twin:wolf_sheep", {"width": float("nan")}, "'width' is nan", ConfigError),
        ("twin:wolf_sheep", {"sheep": float("inf")}, "'sheep' is inf", ConfigError),
        ("twin:metabolic", {"decay": 1.5}, "decay=1.5", ConfigError),
    ],
)
def test_bad_rules_are_refused(source: str, rules: dict, match: str, kind: type) -> None:
    with pytest.raises(kind, match=match):
        open_twin(source, rules)


class _Counter:
    def __init__(self, seed: int) -> None:
        self.count = seed

    def step(self) -> None:
        self.count += 1


def test_any_object_with_a_step_is_a_twin() -> None:
    def apply(model: _Counter, u: list[float]) -> None:
        model.count -= round(u[0] * model.count)

    twin = MesaTwin(
        _Counter,
        lambda model: [model.count],
        apply,
        name="counter",
        states=(State("cells", "cells", 10.0),),
        controls=(Control("kill", "share per h", 1.0, removes=("cells",)),),
        dt=1.0,
        time_unit="h",
    )
    assert isinstance(twin, Twin)
    assert twin.reset([5, 8]).tolist() == [[5], [8]]
    assert twin.step(torch.tensor([[0.0], [0.5]])).tolist() == [[6], [5]]
