"""A metabolic pathway in a stirred vessel: substrate to product and by-product.

Companion paper, arXiv 2402.05750: 80k, 20k and 20k particles, dilution 0.005. Particles of one species
in a stirred vessel are exchangeable, so a binomial draw of how many react is the particle-by-particle
model itself. A step has this order: inflow and dilution (the controls), then the reactions. A particle
of substrate meets an enzyme with the saturating chance `rate * enzymes / (half + substrate)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from galenic.core.errors import ConfigError
from galenic.core.seeding import generator
from galenic.simulation.twin import Control, State, checked_control, checked_twin


@dataclass(frozen=True)
class MetabolicRules:
    """Parameters of the pathway.

    Attributes:
        substrate: Particles at the start.
        product: Particles at the start.
        by_product: Particles at the start.
        enzymes: That make product; constant.
        by_enzymes: That make by-product; constant.
        rate: Particles that an enzyme turns over a step when saturated.
        half: Substrate at half the saturated rate.
        decay: Chance that a product is lost a step.
        inflow: Largest inflow of substrate a step.
        dilution: Largest share that leaves the vessel a step.
    """

    substrate: int = 80_000
    product: int = 20_000
    by_product: int = 20_000
    enzymes: int = 500
    by_enzymes: int = 250
    rate: float = 1.0
    half: float = 20_000.0
    decay: float = 0.01
    inflow: float = 2_000.0
    dilution: float = 0.005

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in vars(self).items() if not value >= 0}
        wrong |= {n: v for n in ("decay", "dilution") if (v := getattr(self, n)) > 1}
        most = self.rate * (self.enzymes + self.by_enzymes)
        if self.half <= 0 or most > self.half:
            wrong |= {"half": self.half, "rate": self.rate}
        if wrong:
            raise ConfigError(
                f"The rules have {', '.join(f'{k}={v}' for k, v in wrong.items())}.",
                where="rules of metabolic",
                expected="no negative number, shares up to 1, rate x enzymes up to half",
            )


class Metabolic:
    """The twin: states substrate, product and by-product, controls inflow and dilution.

    Attributes:
        events: Of the last step, `births`, `deaths` and `removed`, int64 [runs, 3] each; their sum
            is the change of the counts.
    """

    name = "metabolic"
    dt = 1.0
    time_unit = "step"

    def __init__(self, rules: MetabolicRules | None = None) -> None:
        self.rules = rules or MetabolicRules()
        names = ("substrate", "product", "by_product")
        self.states: tuple[State, ...] = tuple(
            State(name, "particles", max(float(getattr(self.rules, name)), 1.0)) for name in names
        )
        self.controls: tuple[Control, ...] = (
            Control("inflow", "particles per step", self.rules.inflow, adds=("substrate",)),
            Control("dilution", "share per step", self.rules.dilution, removes=names),
        )
        self.events: dict[str, Tensor] = {}
        checked_twin(self)

    def reset(self, seeds: Sequence[int]) -> Tensor:
        """Begin one run a seed; counts [runs, 3]."""
        rules = self.rules
        self._draws = [generator(seed, "metabolic") for seed in seeds]
        start = [rules.substrate, rules.product, rules.by_product]
        self._counts = torch.tensor(start).expand(len(seeds), 3)
        return self._counts.float()

    def step(self, u: Tensor) -> Tensor:
        """One step under inflow and dilution [runs, 2]; counts [runs, 3]."""
        u = checked_control(u.detach(), self.controls, len(self._draws)).double()
        inflow = torch.round(u[:, 0]).long()
        left = self._draw(self._counts, u[:, 1:].expand(-1, 3))
        kept = self._counts - left
        rules, substrate = self.rules, kept[:, 0].double()
        share = rules.rate / (rules.half + substrate)
        made = share * rules.enzymes
        # Of those that did not become product, so that the two chances add up.
        wasted = share * rules.by_enzymes / (1 - made)
        decays = torch.full_like(made, rules.decay)
        first = self._draw(kept[:, :2], torch.stack([made, decays], 1))
        to_product, decayed = first.unbind(1)
        rest = (kept[:, 0] - to_product)[:, None]
        to_waste = self._draw(rest, wasted[:, None])[:, 0]
        births = torch.stack([inflow, to_product, to_waste], 1)
        deaths = torch.stack([to_product + to_waste, decayed, torch.zeros_like(inflow)], 1)
        self.events = {"births": births, "deaths": deaths, "removed": left}
        self._counts = self._counts + births - deaths - left
        return self._counts.float()

    def _draw(self, counts: Tensor, p: Tensor) -> Tensor:
        """Binomial draws [runs, k], every run from its own generator."""
        rows = [
            torch.binomial(n, q, generator=draws)
            for n, q, draws in zip(counts.double(), p, self._draws, strict=True)
        ]
        return torch.stack(rows).long()
