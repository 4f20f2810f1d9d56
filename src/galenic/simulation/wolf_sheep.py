"""Wolves, sheep and grass on a torus: many runs at once, no loop over agents.

Rules of Wilensky's "Wolf Sheep Predation" (NetLogo library, 1997). A walk is one of eight headings:
an agent turns by 45 degrees to either side with a chance of 1/8 each, which has about the spread of
NetLogo's turns (22 against 20 degrees), and goes on to the next cell. A tick has this order, and it
matters:

1. grass that was eaten `regrowth` ticks ago is grown;
2. control: of each class, the share that was asked for is removed, rounded to whole agents;
3. all sheep walk, lose 1 energy, eat (one of those that share a grown cell), die below 0, breed;
4. all wolves walk, lose 1 energy, eat (one sheep each, as long as the cell has any), die, breed.

Newborns act from the next tick on. Agents that act at once, with ties broken at random, are equal in
distribution to agents that act one after another in random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from galenic.core.errors import ConfigError
from galenic.simulation import _draws
from galenic.simulation.twin import Control, State, checked_control, checked_twin

CLASSES = ("grass", "sheep", "wolves")
HEADINGS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


@dataclass(frozen=True)
class WolfSheepRules:
    """Parameters of the model; defaults of the NetLogo library.

    Attributes:
        width: Cells a row.
        height: Rows.
        sheep: At the start.
        wolves: At the start.
        sheep_gain: Energy from grass.
        wolf_gain: Energy from a sheep.
        sheep_breed: Chance a tick.
        wolf_breed: Chance a tick.
        regrowth: Ticks from eaten to grown.
    """

    width: int = 51
    height: int = 51
    sheep: int = 100
    wolves: int = 50
    sheep_gain: float = 4.0
    wolf_gain: float = 20.0
    sheep_breed: float = 0.04
    wolf_breed: float = 0.05
    regrowth: int = 30

    def __post_init__(self) -> None:
        wrong = {
            name: value
            for name, value in vars(self).items()
            if not value >= 0 or (name.endswith("_breed") and value > 1)
        }
        if min(self.width, self.height) < 3:
            wrong |= {"width": self.width, "height": self.height}
        if wrong:
            raise ConfigError(
                f"The rules have {', '.join(f'{k}={v}' for k, v in wrong.items())}.",
                where="rules of wolf_sheep",
                expected="no negative number, chances up to 1, a torus of at least 3 x 3",
            )


@dataclass
class _Herd:
    """The living of one class over all runs: no holes, so that no step is spent on the dead.

    Attributes:
        cell: Number of the cell over all runs [n], int64.
        heading: 0 .. 7 [n], int64.
        energy: [n], float32.
        key: What the next random numbers come from [n], int64.
    """

    cell: Tensor
    heading: Tensor
    energy: Tensor
    key: Tensor

    def keep(self, alive: Tensor) -> None:
        """Drop all that `alive` [n] does not name; the last ones move into the holes."""
        dead = (~alive).nonzero().squeeze(1)
        left = len(alive) - len(dead)
        holes, movers = dead[dead < left], alive[left:].nonzero().squeeze(1) + left
        for name, part in list(vars(self).items()):
            part.index_copy_(0, holes, part.index_select(0, movers))
            setattr(self, name, part[:left])

    def feed(self, fed: Tensor, gain: float) -> None:
        """Those that ate (indices) gain energy."""
        self.energy.index_add_(0, fed, torch.tensor(gain).expand(len(fed)))

    def breed(self, parents: Tensor) -> None:
        """Every parent (indices) halves its energy with a child in its cell."""
        self.energy[parents] *= 0.5
        keys = _draws.mix(self.key[parents])
        young = _Herd(self.cell[parents], keys & 7, self.energy[parents], keys)
        for name, part in list(vars(self).items()):
            setattr(self, name, torch.cat([part, getattr(young, name)]))


class WolfSheep:
    """The twin: states grass, sheep and wolves, controls that remove a share of each.

    Attributes:
        events: Of the last step, `births`, `deaths` and `removed`, int64 [runs, 3] each; their sum
            is the change of the counts.
        steps_of_agents: Sheep and wolves that acted, since `reset`.
    """

    name = "wolf_sheep"
    dt = 1.0
    time_unit = "tick"

    def __init__(self, rules: WolfSheepRules | None = None) -> None:
        self.rules = rules or WolfSheepRules()
        area = self.rules.width * self.rules.height
        self.area = area
        # Typical values are those of an undisturbed world, by area.
        self.states: tuple[State, ...] = (
            State("grass", "cells", 0.33 * area),
            State("sheep", "animals", 0.065 * area),
            State("wolves", "animals", 0.03 * area),
        )
        self.controls: tuple[Control, ...] = tuple(
            Control(f"remove_{name}", "share per tick", 1.0, removes=(name,)) for name in CLASSES
        )
        self.events: dict[str, Tensor] = {}
        checked_twin(self)

    # The protocol ------------------------------------------------------------------------

    def reset(self, seeds: Sequence[int]) -> Tensor:
        """Begin one run a seed; counts [runs, 3]."""
        rules, runs = self.rules, len(seeds)
        self.runs, self.tick, self.steps_of_agents = runs, 0, 0
        self._around = _neighbours(rules.width, rules.height)
        self._best = torch.zeros(runs * self.area, dtype=torch.int64)
        self._mark = torch.zeros(runs * self.area, dtype=torch.bool)
        self._roots = _draws.root(seeds, "grass")
        self._sheep = self._herd(seeds, "sheep", rules.sheep, rules.sheep_gain)
        self._wolves = self._herd(seeds, "wolves", rules.wolves, rules.wolf_gain)
        keys = _draws.spread(self._roots, self.area)
        wait = _draws.below(_draws.mix(keys), max(rules.regrowth, 1))
        bare = (_draws.uniform(keys) < 0.5) & (wait > 0)
        self._ready = torch.where(bare, wait + 1, 0).reshape(-1).int()
        # Cells that grow at tick t are counted in row t % period: nobody has to look at all cells.
        self._period = rules.regrowth + 1
        self._growing = torch.zeros(self._period, runs, dtype=torch.int64)
        run = torch.arange(runs)[:, None].expand_as(bare)
        rows = (self._ready.reshape(runs, -1) % self._period)[bare]
        self._growing.index_put_((rows, run[bare]), torch.tensor(1), accumulate=True)
        grown = self.area - bare.sum(1)
        herds = torch.tensor([rules.sheep, rules.wolves]).expand(runs, 2)
        self._counts = torch.cat([grown[:, None], herds], dim=1)
        return self._counts.float()

    def step(self, u: Tensor) -> Tensor:
        """One tick under removed shares [runs, 3]; counts [runs, 3]."""
        u = checked_control(u.detach(), self.controls, self.runs)
        self.tick += 1
        self.events = {
            name: torch.zeros_like(self._counts) for name in ("births", "deaths", "removed")
        }
        self._regrow()
        self._remove(torch.round(u.double() * (self._counts + self.events["births"])).long())
        self._live_sheep()
        self._live_wolves()
        change = self.events["births"] - self.events["deaths"] - self.events["removed"]
        self._counts = self._counts + change
        return self._counts.float()

    # One tick ----------------------------------------------------------------------------

    def _regrow(self) -> None:
        self.events["births"][:, 0] = self._growing[self.tick % self._period]
        self._growing[self.tick % self._period] = 0

    def _remove(self, amounts: Tensor) -> None:
        """Take whole agents [runs, 3] out of the classes."""
        self.events["removed"] = amounts
        if bool(amounts[:, 0].any()):
            cells = (self._ready <= self.tick).nonzero().squeeze(1)
            run = cells // self.area
            keys = _draws.mix(_draws.mix(self._roots + self.tick)[run] + cells % self.area)
            self._eaten(cells[_draws.chosen(keys, run, amounts[:, 0])])
        for place, herd in ((1, self._sheep), (2, self._wolves)):
            if bool(amounts[:, place].any()):
                keys = _draws.mix(herd.key + place)
                herd.keep(~_draws.chosen(keys, herd.cell // self.area, amounts[:, place]))

    def _live_sheep(self) -> None:
        herd = self._sheep
        self._walk(herd)
        grazing = (self._ready.index_select(0, herd.cell) <= self.tick).nonzero().squeeze(1)
        cells, keys = (part.index_select(0, grazing) for part in (herd.cell, herd.key))
        fed = self._first(cells, _draws.order(keys))
        herd.feed(grazing[fed], self.rules.sheep_gain)
        cells = cells[fed]
        self._eaten(cells)
        self.events["deaths"][:, 0] = self._by_run(cells)
        self._die_and_breed(herd, 1, self.rules.sheep_breed)

    def _live_wolves(self) -> None:
        herd = self._wolves
        self._walk(herd)
        fed, prey = self._meals()
        herd.feed(fed, self.rules.wolf_gain)
        self.events["deaths"][:, 1] += self._by_run(self._sheep.cell[prey])
        alive = torch.ones(len(self._sheep.cell), dtype=torch.bool)
        alive[prey] = False
        self._sheep.keep(alive)
        self._die_and_breed(herd, 2, self.rules.wolf_breed)

    def _meals(self) -> tuple[Tensor, Tensor]:
        """Wolves that eat, and the sheep they eat: pairs at random within every cell."""
        wolves, sheep = self._wolves.cell, self._sheep.cell
        hungry = torch.arange(len(wolves))
        near = self._marked(wolves, sheep).nonzero().squeeze(1)
        by_wolf = _draws.order(self._wolves.key)
        by_sheep = torch.zeros_like(sheep).index_copy_(0, near, _draws.mix(self._sheep.key[near]))
        fed, prey = [hungry[:0]], [near[:0]]
        while len(near):
            hungry = hungry[self._marked(sheep[near], wolves[hungry])]
            near = near[self._marked(wolves[hungry], sheep[near])]
            eats = self._first(wolves[hungry], by_wolf[hungry])
            eaten = self._first(sheep[near], by_sheep[near])
            fed.append(hungry[eats])
            prey.append(near[eaten])
            hungry, near = hungry[~eats], near[~eaten]
        return torch.cat(fed), torch.cat(prey)

    # What both classes do -----------------------------------------------------------------

    def _walk(self, herd: _Herd) -> None:
        self.steps_of_agents += len(herd.cell)
        herd.key = _draws.advance(herd.key)
        herd.heading = (herd.heading + _draws.turn(herd.key)) & 7
        spot = herd.cell % self.area
        herd.cell = herd.cell - spot + self._around.index_select(0, spot * 8 + herd.heading)
        herd.energy = herd.energy - 1.0

    def _die_and_breed(self, herd: _Herd, place: int, p: float) -> None:
        alive = herd.energy >= 0
        self.events["deaths"][:, place] += self._by_run(herd.cell[~alive])
        herd.keep(alive)
        parents = _draws.chance(herd.key, p).nonzero().squeeze(1)
        self.events["births"][:, place] = self._by_run(herd.cell[parents])
        herd.breed(parents)

    def _eaten(self, cells: Tensor) -> None:
        self._ready.index_fill_(0, cells, self.tick + self._period)
        self._growing[self.tick % self._period] += self._by_run(cells)

    def _first(self, cells: Tensor, order: Tensor) -> Tensor:
        """The one agent of each cell that is highest in `order`, as a mask [n]."""
        self._best.scatter_reduce_(0, cells, order, "amax", include_self=False)
        return self._best.index_select(0, cells) == order

    def _marked(self, marks: Tensor, cells: Tensor) -> Tensor:
        """Which of `cells` are among `marks`, as a mask."""
        self._mark.index_fill_(0, marks, True)
        found = self._mark.index_select(0, cells)
        self._mark.index_fill_(0, marks, False)
        return found

    def _by_run(self, cells: Tensor) -> Tensor:
        return torch.bincount(cells // self.area, minlength=self.runs)

    def _herd(self, seeds: Sequence[int], name: str, count: int, gain: float) -> _Herd:
        keys = _draws.spread(_draws.root(seeds, name), count)
        start = torch.arange(len(seeds))[:, None] * self.area
        cell = start + _draws.below(_draws.mix(keys + 1), self.area)
        energy = (_draws.uniform(_draws.mix(keys + 2)) * 2 * gain).float()
        return _Herd(*(part.reshape(-1) for part in (cell, keys & 7, energy, keys)))


def _neighbours(width: int, height: int) -> Tensor:
    """The eight neighbours of every cell of one run, by heading, flat [cells * 8]."""
    cells = torch.arange(width * height)
    x, y = cells % width, cells // width
    around = [(y + dy) % height * width + (x + dx) % width for dx, dy in HEADINGS]
    return torch.stack(around, dim=1).reshape(-1)
