"""Runs of a policy on a twin, and on its metamodel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from galenic.core.errors import SimulationError
from galenic.simulation.controllers import Given, Policy, straight_through
from galenic.simulation.metamodel import Metamodel
from galenic.simulation.twin import Twin

# Horizons up to this are kept whole on the way to a gradient; of longer ones, every such state.
CHUNK = 200


@dataclass(frozen=True)
class Paths:
    """Counts and controls of several runs.

    Attributes:
        x: Counts [runs, T + 1, states].
        u: Controls [runs, T, controls].
    """

    x: Tensor
    u: Tensor


@torch.no_grad()
def on_twin(twin: Twin, policy: Policy, seeds: Sequence[int], steps: int) -> Paths:
    """Apply a policy to the twin itself, one run a seed."""
    x = twin.reset(seeds)
    policy.begin(len(seeds))
    seen, done = [x], []
    for moment in range(steps):
        u = policy(x, moment)
        x = twin.step(u)
        seen.append(x)
        done.append(u)
    return Paths(torch.stack(seen, 1), torch.stack(done, 1))


def on_metamodel(model: Metamodel, policy: Policy, start: Tensor, steps: int) -> Paths:
    """Apply a policy to the metamodel from counts [runs, states], with gradients.

    Of a horizon over 200 steps every 200th state is kept; what lies between is computed again on the
    way back.

    Raises:
        SimulationError: If the counts leave the numbers.
    """
    policy.begin(len(start))

    def chunk(x: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        seen, done = [], []
        for moment in range(first, last):
            u = policy(x, moment)
            x = model(x, u)
            seen.append(x)
            done.append(u)
        return torch.stack(seen, 1), torch.stack(done, 1)

    parts, x = [], start
    for first in range(0, steps, CHUNK):
        last = min(first + CHUNK, steps)
        if steps <= CHUNK:
            part = chunk(x, first, last)
        else:
            part = checkpoint(chunk, x, first, last, use_reentrant=False)
        parts.append(part)
        x = part[0][:, -1]
    counts = torch.cat([start[:, None], *(p[0] for p in parts)], 1)
    if not bool(torch.isfinite(counts).all()):
        raise SimulationError(
            "The metamodel runs away under this control.",
            where=f"family {model.family}",
            next_step="Fit it on more patterns, or choose another family.",
        )
    return Paths(counts, torch.cat([p[1] for p in parts], 1))


def through_twin(
    twin: Twin, model: Metamodel, policy: Policy, seeds: Sequence[int], steps: int
) -> Paths:
    """Apply a policy to the twin, with straight-through gradients.

    Forward every count and every rounding is the twin's own, bit for bit; backward a step is the
    identity on the rounding and the metamodel's Jacobian, taken at the twin's own counts.
    """
    x = twin.reset(seeds)
    policy.begin(len(seeds))
    seen, done = [x], []
    for moment in range(steps):
        u = policy(x, moment)
        hard = twin.step(u)
        x = straight_through(hard, model(x, u))
        seen.append(x)
        done.append(u)
    return Paths(torch.stack(seen, 1), torch.stack(done, 1))


def patterns(policy: Policy, count: int, steps: int, draws: torch.Generator) -> Tensor:
    """Controls to fit on [count, T, controls]: levels that hold for a while; the first has none."""
    # Half of the levels are zero, so that effects of single channels are seen as well.
    pieces = max(2, steps // 30)
    levels = torch.rand(count, pieces, len(policy.high), generator=draws)
    levels = levels * (torch.rand(levels.shape, generator=draws) < 0.5)
    levels[0] = 0
    hold = -(-steps // pieces)
    return (policy.high * levels).repeat_interleave(hold, dim=1)[:, :steps]


def means(twin: Twin, u: Tensor, seeds: Sequence[int]) -> Paths:
    """Mean counts of a twin under controls [patterns, T, controls], over the seeds of each.

    Args:
        twin: To run.
        u: Controls.
        seeds: The same number for each pattern, pattern after pattern.
    """
    count, each = len(u), len(seeds) // len(u)
    given = Given(twin.controls, u.repeat_interleave(each, dim=0))
    found = on_twin(twin, given, seeds, u.shape[1])
    return Paths(found.x.unflatten(0, (count, each)).mean(1), u)
