"""Metamodels: small differential equations that stand for a twin, and can be differentiated.

What a control does is known and not fitted: as in a twin, a step begins with the shares that are
removed and the additions, and goes on by dx/dt = f(x; p), in states that are divided by their scales.
Families of arXiv 2402.05750: the mechanistic equations of the twin, generalised mass action, S-systems,
and polynomials of first and second order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError, SimulationError
from galenic.core.files import atomic_json
from galenic.simulation.rates import Rates, rates_of
from galenic.simulation.twin import (
    Control,
    State,
    Twin,
    bounds,
    effects,
)

Family = Literal["mechanistic", "gma", "s_system", "polynomial_1", "polynomial_2"]


class Metamodel(nn.Module):
    """A fitted (or to be fitted) differential equation of a twin.

    Args:
        family: Which equations.
        rates: The equations themselves.
        states: Of the twin.
        controls: Of the twin.
        dt: Step of the twin.
        time_unit: Unit of `dt`.
        substeps: Runge-Kutta steps within `dt`.

    Attributes:
        fit_error: Root mean square error of trajectories in units of the scales; NaN before a fit.
        reach: Lowest and highest control of the data it was fitted on, [controls] each.
    """

    def __init__(
        self,
        family: Family,
        rates: Rates,
        states: Sequence[State],
        controls: Sequence[Control],
        *,
        dt: float,
        time_unit: str,
        substeps: int = 1,
    ) -> None:
        super().__init__()
        self.family, self.rates = family, rates
        self.states, self.controls = tuple(states), tuple(controls)
        self.dt, self.time_unit, self.substeps = dt, time_unit, substeps
        self.scale: Tensor
        self.takes: Tensor
        self.gives: Tensor
        self.register_buffer("scale", torch.tensor([state.scale for state in states]))
        takes, gives = effects(states, controls)
        self.register_buffer("takes", takes)
        self.register_buffer("gives", gives)
        self.fit_error = float("nan")
        self.reach = bounds(controls)

    def controlled(self, x: Tensor, u: Tensor) -> Tensor:
        """Scaled states [..., states] right after controls [..., controls]."""
        kept = (1 - self.takes * u.unsqueeze(-2)).prod(-1)
        return x * kept + u @ self.gives.T / self.scale

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Counts [..., states] one step of the twin later: Runge-Kutta of fourth order."""
        y, h = self.controlled(x / self.scale, u), self.dt / self.substeps
        slope = self.rates.prepared()
        for _ in range(self.substeps):
            k1 = slope(y)
            k2 = slope(y + h / 2 * k1)
            k3 = slope(y + h / 2 * k2)
            k4 = slope(y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y * self.scale

    def trajectory(self, x: Tensor, u: Tensor) -> Tensor:
        """Counts [..., T + 1, states] from counts [..., states] and controls [..., T, controls].

        Raises:
            SimulationError: If the counts leave the numbers.
        """
        seen = [x]
        for moment in range(u.shape[-2]):
            seen.append(self(seen[-1], u[..., moment, :]))
        found = torch.stack(seen, dim=-2)
        if not bool(torch.isfinite(found).all()):
            raise SimulationError(
                "The metamodel runs away to infinity.",
                where=f"family {self.family}",
                expected="finite counts over the whole horizon",
                next_step="Fit on more patterns, choose another family, or a shorter horizon.",
            )
        return found

    def document(self) -> dict[str, Any]:
        """What `metamodel.json` holds."""
        low, high = self.reach
        return {
            "family": self.family,
            "equations": self.rates.equations(self.states),
            "controls": {
                c.name: {
                    "unit": c.unit,
                    "low": c.low,
                    "high": c.high,
                    "removes": list(c.removes),
                    "adds": list(c.adds),
                    "fitted": [low[place].item(), high[place].item()],
                }
                for place, c in enumerate(self.controls)
            },
            "states": {s.name: {"unit": s.unit, "scale": s.scale} for s in self.states},
            "parameters": {name: p.tolist() for name, p in self.rates.named_parameters()},
            "dt": self.dt,
            "time_unit": self.time_unit,
            "substeps": self.substeps,
            "fit_error": self.fit_error,
        }

    def save(self, path: Path) -> Path:
        """Write equations, parameters and fit error as JSON."""
        return atomic_json(path, self.document())


def metamodel_of(twin: Twin, family: Family, *, substeps: int = 1) -> Metamodel:
    """An unfitted metamodel of `twin`.

    Raises:
        ConfigError: If the twin has no mechanistic equations and they are asked for.
    """
    rates = rates_of(family, twin.name, len(twin.states))
    return Metamodel(
        family,
        rates,
        twin.states,
        twin.controls,
        dt=twin.dt,
        time_unit=twin.time_unit,
        substeps=substeps,
    )


def load(path: Path, twin: Twin) -> Metamodel:
    """The metamodel of `twin` in a JSON file.

    Raises:
        ConfigError: If the file is not one, or is of another twin.
        SimulationError: If its exponents do not keep counts positive.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = metamodel_of(twin, document["family"], substeps=document["substeps"])
        same = document["states"] == {
            s.name: {"unit": s.unit, "scale": s.scale} for s in twin.states
        } and list(document["controls"]) == [c.name for c in twin.controls]
        with torch.no_grad():
            for name, parameter in model.rates.named_parameters():
                parameter.copy_(torch.tensor(document["parameters"][name]))
        limits = [document["controls"][c.name]["fitted"] for c in twin.controls]
        model.reach = (
            torch.tensor([low for low, _ in limits]),
            torch.tensor([h for _, h in limits]),
        )
        model.fit_error = float("nan") if (e := document["fit_error"]) is None else float(e)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ConfigError(f"'{path.name}' holds no metamodel: {error}.", where=str(path)) from None
    if not same:
        raise ConfigError(
            "The metamodel is of another twin.",
            where=str(path),
            expected=f"states {', '.join(s.name for s in twin.states)} with their units and scales",
        )
    model.rates.check()
    return model
