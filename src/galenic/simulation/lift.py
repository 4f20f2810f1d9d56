"""Lift: what a policy does on the twin itself, over seeds that nobody has fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from galenic.core.errors import SimulationError
from galenic.simulation.controllers import Policy
from galenic.simulation.metamodel import Metamodel
from galenic.simulation.objective import Objective
from galenic.simulation.rollout import Paths, on_twin
from galenic.simulation.twin import Twin


@dataclass(frozen=True)
class Lift:
    """Figures of every held-out run.

    Attributes:
        paths: Counts and controls.
        figures: By name [runs]: `control_cost` (J), `target_error` (mean squared distance to the
            targets), `control_energy` and `extinction_rate` (1 where a state that must live is
            empty at the end).
    """

    paths: Paths
    figures: dict[str, Tensor]


def evaluate(
    twin: Twin,
    policy: Policy,
    objective: Objective,
    seeds: Sequence[int],
    *,
    steps: int,
    seen: Iterable[int],
) -> Lift:
    """Apply a policy to the twin over held-out seeds.

    Args:
        twin: To run.
        policy: Trained.
        objective: J.
        seeds: One a run.
        steps: Of the horizon.
        seen: Seeds that anything was fitted, searched or trained on.

    Raises:
        SimulationError: If a held-out seed was seen.
    """
    both = sorted(set(seeds) & set(seen))
    if both:
        raise SimulationError(
            f"{len(both)} of {len(seeds)} held-out seeds were fitted on.",
            where=f"seed {both[0]}",
            expected="seeds that are disjoint from those of the fit",
        )
    paths = on_twin(twin, policy, seeds, steps)
    lost = objective.lost(paths.x)
    return Lift(
        paths,
        {
            "control_cost": objective(paths.x, paths.u),
            "target_error": objective.miss(paths.x),
            "control_energy": objective.energy(paths.u),
            "extinction_rate": (lost > 0).to(lost.dtype),
        },
    )


def beyond(model: Metamodel, u: Tensor) -> list[str]:
    """Controls that go further than those a metamodel was fitted on.

    Args:
        model: Fitted.
        u: Controls [runs, T, controls].
    """
    low, high = model.reach
    wide = 1e-6 + 1e-3 * (high - low)
    flat = u.flatten(0, 1)
    out = (flat.amin(0) < low - wide) | (flat.amax(0) > high + wide)
    return [c.name for c, far in zip(model.controls, out.tolist(), strict=True) if far]


def far_from_target(objective: Objective, paths: Paths, tolerance: float = 0.1) -> Tensor:
    """States whose late mean is further from its target than a share of it, bool [states]."""
    mean = objective.end(paths.x).mean((0, 1))
    wished = torch.isfinite(objective.target)
    gap = (mean - objective.target).abs()
    return wished & (gap > tolerance * objective.target.clamp(min=1.0))
