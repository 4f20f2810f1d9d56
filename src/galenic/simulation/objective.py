"""What is wished of a twin: J, in scaled counts, over a horizon."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from galenic.core.errors import ConfigError
from galenic.simulation.controllers import straight_through
from galenic.simulation.twin import Twin, index_of, scales

# Share of the typical count at which a class is in danger.
_NEAR = 0.04
# A polynomial metamodel may go far below zero; beyond this many of those shares it is no worse.
_DEEPEST = -20.0


@dataclass(frozen=True)
class Objective:
    """J = 1/T_late int_late ||(x - target) / scale||^2 dt + weight/T int ||u / high||^2 dt + penalty.

    Attributes:
        target: Wished counts [states]; NaN where any count will do.
        scale: Typical counts [states].
        high: Largest controls [controls].
        late: Share of the horizon, its end, that is judged.
        control_weight: Of what controls cost.
        alive: States that must not be empty at the end [states], bool.
        penalty: Added for each of them that is. A deterministic metamodel never dies out; there, and
            for the gradient everywhere, a count near zero stands for it.
    """

    target: Tensor
    scale: Tensor
    high: Tensor
    late: float
    control_weight: float
    alive: Tensor
    penalty: float

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """J [runs] of counts [runs, T + 1, states] and controls [runs, T, controls]."""
        danger = straight_through(self.lost(x), self._danger(x))
        return self.miss(x) + self.control_weight * self.energy(u) + self.penalty * danger

    def miss(self, x: Tensor) -> Tensor:
        """Mean squared distance to the targets over the late steps [runs]."""
        wished = torch.isfinite(self.target)
        target = torch.where(wished, self.target, 0.0)
        gap = (self.end(x) - target) / self.scale * wished
        return gap.square().sum(-1).mean(-1)

    def end(self, x: Tensor) -> Tensor:
        """The late counts, which are judged, [runs, late, states]."""
        steps = x.shape[1] - 1
        return x[:, min(1 + int(steps * (1 - self.late)), steps) :]

    def energy(self, u: Tensor) -> Tensor:
        """Mean squared control, every channel as a share of its largest value [runs]."""
        return (u / torch.where(self.high > 0, self.high, 1.0)).square().sum(-1).mean(-1)

    def lost(self, x: Tensor) -> Tensor:
        """How many states that must live are empty at the end [runs]."""
        return ((x[:, -1] <= 0) & self.alive).sum(-1).to(x.dtype)

    def _danger(self, x: Tensor) -> Tensor:
        """What :meth:`lost` has for a gradient: it grows as late counts come near zero [runs]."""
        near = (self.end(x) / (_NEAR * self.scale)).clamp(min=_DEEPEST)
        return (torch.exp(-near) * self.alive).sum(-1).mean(-1)


def objective_of(
    twin: Twin,
    targets: dict[str, float],
    *,
    alive: tuple[str, ...],
    high: Tensor,
    late: float,
    control_weight: float,
    penalty: float,
) -> Objective:
    """An objective in the names of a twin.

    Raises:
        SimulationError: If a state is not there.
        ConfigError: If a target is no count, or there is none.
    """
    names = [state.name for state in twin.states]
    target = torch.full((len(names),), float("nan"))
    for name, value in targets.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(
                f"The target of '{name}' is {value}.",
                expected="a count, 0 or more",
                where="targets",
            )
        target[index_of(name, names, "targets")] = value
    if not targets:
        raise ConfigError("No target was named.", where="targets", expected=f"of {names}")
    must = torch.zeros(len(names), dtype=torch.bool)
    for name in alive:
        must[index_of(name, names, "alive")] = True
    return Objective(target, scales(twin), high, late, control_weight, must, penalty)
