"""Right-hand sides of metamodels: pure functions of scaled counts, with their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError, SimulationError
from galenic.simulation.twin import State

# Below this a count raised to a negative power would leave the numbers.
_TINY = 1e-6


class Rates(nn.Module):
    """f(x; p) of scaled counts [..., states]."""

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """dx/dt without controls, from counts [..., states]; parameters are transformed once."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """dx/dt without controls, [..., states]."""
        return self.prepared()(x)

    def equations(self, states: Sequence[State]) -> list[str]:
        """One equation a state, in its parameters, for people."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse parameters under which counts could cross zero."""

    def project(self) -> None:
        """Bring parameters back to where :meth:`check` passes, in place."""


@dataclass(frozen=True)
class Mechanism:
    """Equations that are known from the rules of a twin.

    Attributes:
        start: Parameters by name, all of them rates that may not be negative.
        rates: From the parameters, dx/dt as a function of scaled counts [..., states].
        equations: In words.
    """

    start: Mapping[str, float]
    rates: Callable[[Mapping[str, Tensor]], Callable[[Tensor], Tensor]]
    equations: tuple[str, ...]


def _wolf_sheep(p: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    none = torch.zeros_like(p["grow"])
    # Columns are the equations, rows the monomials: grass, sheep, wolves, grass sheep, sheep wolves.
    table = torch.stack(
        [
            torch.stack([-p["grow"], none, none]),
            torch.stack([none, -p["starve"], none]),
            torch.stack([none, none, -p["fade"]]),
            torch.stack([-p["graze"], p["feed"], none]),
            torch.stack([none, -p["kill"], p["hunt"]]),
        ]
    )
    constant = torch.stack([p["grow"] * p["bare"], none, none])
    return lambda x: torch.cat([x, x[..., :-1] * x[..., 1:]], -1) @ table + constant


def _metabolic(p: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    turned = torch.stack([-p["use"], p["make"], p["waste"]])
    none = torch.zeros_like(p["decay"])
    lost = torch.stack([none, p["decay"], none])
    return lambda x: turned * (x[..., :1] / (p["half"] + x[..., :1])) - lost * x


MECHANISMS = {
    "wolf_sheep": Mechanism(
        {"grow": 0.03, "bare": 3.0, "graze": 0.06, "feed": 0.2, "starve": 0.15, "kill": 0.05,
         "hunt": 0.05, "fade": 0.05},
        _wolf_sheep,
        (
            "d grass/dt = grow (bare - grass) - graze grass sheep",
            "d sheep/dt = feed grass sheep - starve sheep - kill sheep wolves",
            "d wolves/dt = hunt sheep wolves - fade wolves",
        ),
    ),
    "metabolic": Mechanism(
        {"half": 0.5, "use": 0.02, "make": 0.05, "decay": 0.02, "waste": 0.02},
        _metabolic,
        (
            "d substrate/dt = -use substrate / (half + substrate)",
            "d product/dt = make substrate / (half + substrate) - decay product",
            "d by_product/dt = waste substrate / (half + substrate)",
        ),
    ),
}  # fmt: skip


class Mechanistic(Rates):
    """The equations of a :class:`Mechanism`; parameters stay positive as exponentials."""

    def __init__(self, mechanism: Mechanism) -> None:
        super().__init__()
        self._mechanism = mechanism
        values = torch.tensor(list(mechanism.start.values()))
        self.log_rates = nn.Parameter(values.log())

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """dx/dt, from counts [..., states]."""
        return self._mechanism.rates(
            dict(zip(self._mechanism.start, self.log_rates.exp(), strict=True))
        )

    def equations(self, states: Sequence[State]) -> list[str]:
        """One a state."""
        rates = zip(self._mechanism.start, self.log_rates.exp().tolist(), strict=True)
        return [*self._mechanism.equations, ", ".join(f"{k} = {v:.4g}" for k, v in rates)]


class PowerLaw(Rates):
    """Generalised mass action; with one gain and one loss a state it is an S-system.

    f_i = sum_k exp(gain_ik) prod_j x_j^h_ijk - sum_k exp(loss_ik) prod_j x_j^h_ijk.

    Args:
        states: How many.
        terms: Gains, and losses, a state.
    """

    def __init__(self, states: int, terms: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((states, terms), -4.0))
        self.loss = nn.Parameter(torch.full((states, terms), -4.0))
        # The first terms begin as x_i, the others with a neighbour, so that no two are the same.
        others = torch.eye(states).roll(1, 0)[:, None] * torch.arange(terms)[None, :, None]
        self.gain_powers = nn.Parameter(torch.eye(states)[:, None] + others)
        self.loss_powers = nn.Parameter(torch.eye(states)[:, None] + others)

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """dx/dt, from counts [..., states]."""
        shape = (2, *self.gain.shape)
        powers = torch.stack([self.gain_powers, self.loss_powers]).flatten(0, 2)
        factors = torch.stack([self.gain, self.loss]).flatten()

        def rates(x: Tensor) -> Tensor:
            terms = torch.exp(x.clamp(min=_TINY).log() @ powers.T + factors)
            gains, losses = terms.unflatten(-1, shape).sum(-1).unbind(-2)
            return gains - losses

        return rates

    def equations(self, states: Sequence[State]) -> list[str]:
        """One a state."""
        names = [state.name for state in states]
        found = []
        for i, name in enumerate(names):
            gains = _products(self.gain[i], self.gain_powers[i], names, "+")
            losses = _products(self.loss[i], self.loss_powers[i], names, "-")
            found.append(f"d {name}/dt = {gains} {losses}")
        return found

    def check(self) -> None:
        """Every loss of a state must fade as that state does.

        Raises:
            SimulationError: Naming the exponent that is not positive.
        """
        own = self.loss_powers.diagonal(dim1=0, dim2=2)  # [terms, states]
        if bool((own <= 0).any()):
            term, state = (own <= 0).nonzero()[0].tolist()
            raise SimulationError(
                f"A loss does not vanish with its own state: the exponent is {own[term, state].item():g}.",
                where=f"state {state}, loss {term}",
                expected="a positive exponent, which keeps counts above zero",
            )

    def project(self) -> None:
        """Keep own exponents of losses away from zero."""
        with torch.no_grad():
            self.loss_powers.diagonal(dim1=0, dim2=2).clamp_(min=0.05)


class Polynomial(Rates):
    """f_i = c_i0 + sum_j c_ij x_j (+ sum_jk c_ijk x_j x_k).

    Args:
        states: How many.
        order: 1 or 2.
    """

    def __init__(self, states: int, order: int) -> None:
        super().__init__()
        self._pairs = list(combinations_with_replacement(range(states), 2)) if order == 2 else []
        self._left = [i for i, _ in self._pairs]
        self._right = [j for _, j in self._pairs]
        self.coefficients = nn.Parameter(torch.zeros(states, 1 + states + len(self._pairs)))

    def features(self, x: Tensor) -> Tensor:
        """Monomials [..., monomials] of counts [..., states]."""
        squares = x[..., self._left] * x[..., self._right]
        return torch.cat([torch.ones_like(x[..., :1]), x, squares], -1)

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """dx/dt, from counts [..., states]."""
        return lambda x: self.features(x) @ self.coefficients.T

    def equations(self, states: Sequence[State]) -> list[str]:
        """One a state."""
        names = [state.name for state in states]
        terms = ["", *names, *(f"{names[i]} {names[j]}" for i, j in self._pairs)]
        return [
            f"d {name}/dt = "
            + " ".join(f"{c:+.4g} {t}".strip() for c, t in zip(row, terms, strict=True))
            for name, row in zip(names, self.coefficients.tolist(), strict=True)
        ]


def _products(logs: Tensor, powers: Tensor, names: Sequence[str], sign: str) -> str:
    return " ".join(
        f"{sign} {c:.4g} " + " ".join(f"{n}^{h:.3g}" for n, h in zip(names, row, strict=True))
        for c, row in zip(logs.exp().tolist(), powers.tolist(), strict=True)
    )


def rates_of(family: str, twin: str, states: int) -> Rates:
    """Unfitted equations of a family.

    Raises:
        ConfigError: If the family is unknown, or no mechanism is known of `twin`.
    """
    if family == "mechanistic":
        if twin not in MECHANISMS:
            raise ConfigError(
                f"No mechanistic equations are known of the twin '{twin}'.",
                where="family",
                expected="gma, s_system, polynomial_1 or polynomial_2",
            )
        return Mechanistic(MECHANISMS[twin])
    made: dict[str, Callable[[], Rates]] = {
        "gma": lambda: PowerLaw(states, 2),
        "s_system": lambda: PowerLaw(states, 1),
        "polynomial_1": lambda: Polynomial(states, 1),
        "polynomial_2": lambda: Polynomial(states, 2),
    }
    if family not in made:
        raise ConfigError(
            f"There is no family '{family}'.", expected=f"mechanistic, {', '.join(made)}"
        )
    return made[family]()
