"""What a twin is: a model of one patient that can be reset, stepped and steered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from galenic.core.errors import ConfigError, SimulationError


@dataclass(frozen=True)
class State:
    """One thing that is counted.

    Attributes:
        name: As in a series.
        unit: Of the count; mandatory.
        scale: A typical value, by which losses are made comparable.
    """

    name: str
    unit: str
    scale: float


@dataclass(frozen=True)
class Control:
    """One thing that can be done, with its bounds.

    Attributes:
        name: As in a series.
        unit: Mandatory.
        high: Largest value.
        low: Smallest value; the twin is untouched at 0.
        removes: States of which a share `u` is taken as a step begins.
        adds: States to which `u` is added then.
    """

    name: str
    unit: str
    high: float
    low: float = 0.0
    removes: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()


@runtime_checkable
class Twin(Protocol):
    """A model of a patient, many runs at once.

    Attributes:
        name: Of the model.
        states: What is observed, in order.
        controls: What can be done, in order.
        dt: Length of a step.
        time_unit: Unit of `dt`.
    """

    name: str
    states: tuple[State, ...]
    controls: tuple[Control, ...]
    dt: float
    time_unit: str

    def reset(self, seeds: Sequence[int]) -> Tensor:
        """Begin one run a seed; counts [runs, states]. A run depends on its own seed alone."""

    def step(self, u: Tensor) -> Tensor:
        """Go on by `dt` under controls [runs, controls]; counts [runs, states]."""


def scales(twin: Twin) -> Tensor:
    """Typical values of the states [states]."""
    return torch.tensor([state.scale for state in twin.states])


def bounds(controls: Sequence[Control]) -> tuple[Tensor, Tensor]:
    """Lowest and highest controls, [controls] each."""
    low = torch.tensor([control.low for control in controls])
    return low, torch.tensor([control.high for control in controls])


def effects(states: Sequence[State], controls: Sequence[Control]) -> tuple[Tensor, Tensor]:
    """Which control removes and which adds to which state, [states, controls] of 0 and 1."""
    names = [state.name for state in states]
    takes, gives = torch.zeros(2, len(names), len(controls)).unbind(0)
    for place, control in enumerate(controls):
        for table, named in ((takes, control.removes), (gives, control.adds)):
            for name in named:
                table[index_of(name, names, f"control '{control.name}'"), place] = 1.0
    return takes, gives


def index_of(name: str, names: Sequence[str], where: str) -> int:
    """Place of a state or control.

    Raises:
        SimulationError: If there is none of that name.
    """
    if name not in names:
        raise SimulationError(
            f"There is no '{name}'.", where=where, expected=f"one of {', '.join(names)}"
        )
    return list(names).index(name)


def checked_twin(twin: Twin) -> Twin:
    """`twin`, if it says what its numbers mean.

    Raises:
        ConfigError: Where a unit, the time step or a scale is missing or senseless.
    """
    faults = [
        f"{kind} '{part.name}' has no unit"
        for kind, parts in (("state", twin.states), ("control", twin.controls))
        for part in parts
        if not part.unit
    ]
    faults += [
        f"control '{c.name}' goes from {c.low} to {c.high}"
        for c in twin.controls
        if not (math.isfinite(c.low) and math.isfinite(c.high) and c.low <= 0 <= c.high)
        or c.low == c.high
    ]
    faults += [f"state '{s.name}' has scale {s.scale}" for s in twin.states if not s.scale > 0]
    if not twin.dt > 0 or not twin.time_unit:
        faults.append(f"a step is {twin.dt} {twin.time_unit or '(no unit)'}")
    if faults:
        raise ConfigError(
            f"The twin cannot be used: {'; '.join(faults)}.",
            where=twin.name,
            expected="units, a positive time step and scale, and bounds around 0",
        )
    effects(twin.states, twin.controls)
    return twin


def checked_control(u: Tensor, controls: Sequence[Control], runs: int) -> Tensor:
    """`u` [runs, controls], if a twin can take it.

    Raises:
        SimulationError: If a channel is missing, or a value is not finite or out of bounds.
    """
    names = [control.name for control in controls]
    if tuple(u.shape) != (runs, len(controls)):
        raise SimulationError(
            f"The control has the shape {list(u.shape)}.",
            where="step",
            expected=f"[{runs}, {len(controls)}]: {', '.join(names)}",
        )
    low, high = bounds(controls)
    wrong = ~((u >= low) & (u <= high))
    if bool(wrong.any()):
        run, place = wrong.nonzero()[0].tolist()
        raise SimulationError(
            f"Control '{names[place]}' is {u[run, place].item():g}.",
            where=f"run {run}",
            expected=f"{low[place].item():g} to {high[place].item():g} {controls[place].unit}",
        )
    return u


class MesaTwin:
    """Any model with a method `step`, such as one of Mesa: one object a run.

    Args:
        make: From a seed, a new model.
        observe: Of a model, its counts in the order of `states`.
        apply: Puts a control (one value a channel) into a model, before its step.
        name: Of the model.
        states: What `observe` counts.
        controls: What `apply` takes.
        dt: Length of a step.
        time_unit: Unit of `dt`.
        advance: How a model takes a step, where that is not `model.step()`.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        observe: Callable[[Any], Sequence[float]],
        apply: Callable[[Any, Sequence[float]], None],
        *,
        name: str,
        states: tuple[State, ...],
        controls: tuple[Control, ...],
        dt: float,
        time_unit: str,
        advance: Callable[[Any], None] = lambda model: model.step(),
    ) -> None:
        self._make, self._observe, self._apply, self._advance = make, observe, apply, advance
        self.name, self.states, self.controls = name, states, controls
        self.dt, self.time_unit = dt, time_unit
        self._models: list[Any] = []
        checked_twin(self)

    def reset(self, seeds: Sequence[int]) -> Tensor:
        """One new model a seed; counts [runs, states]."""
        self._models = [self._make(seed) for seed in seeds]
        return self._seen()

    def step(self, u: Tensor) -> Tensor:
        """Control, then step, every model; counts [runs, states]."""
        values = checked_control(u, self.controls, len(self._models)).tolist()
        for model, row in zip(self._models, values, strict=True):
            if any(row):
                self._apply(model, row)
            self._advance(model)
        return self._seen()

    def _seen(self) -> Tensor:
        return torch.tensor([list(self._observe(model)) for model in self._models]).float()
