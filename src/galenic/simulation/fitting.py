"""Fit a metamodel to trajectories of a twin, or of one patient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from galenic.core.errors import SimulationError
from galenic.simulation.metamodel import Metamodel
from galenic.simulation.rollout import Paths

# A trajectory that leaves the numbers counts as this, so that a line search steps back.
_WORST = 1e6


def fit(model: Metamodel, data: Paths, *, segment: int = 25, iterations: int = 150) -> Metamodel:
    """Fit in place: first slopes, then trajectories over segments that start at the data.

    Args:
        model: To fit.
        data: Mean counts and controls, one path a pattern.
        segment: Steps of a trajectory, at most; a series is cut into equal parts.
        iterations: Of L-BFGS, at most, for each of the two.

    Returns:
        `model`, with its error on whole trajectories.

    Raises:
        SimulationError: If counts are negative or not finite, or the fit leaves the numbers.
    """
    _require_counts(data)
    _descend(model, lambda: _slope_error(model, data), iterations)
    _descend(model, lambda: _path_error(model, data, segment), iterations)
    return _finished(model, data)


def personalise(
    model: Metamodel, data: Paths, *, pull: float = 1e-3, iterations: int = 60
) -> Metamodel:
    """A copy of a metamodel that is fitted anew to one patient's series.

    Args:
        model: Of the population.
        data: One path, or several of the same patient.
        pull: Weight of the squared distance to the parameters of the population.
        iterations: Of L-BFGS, at most.

    Raises:
        SimulationError: As :func:`fit`.
    """
    _require_counts(data)
    own = copy.deepcopy(model)
    home = [p.detach().clone() for p in own.rates.parameters()]

    def error() -> Tensor:
        far = sum(
            ((p - q).square().sum() for p, q in zip(own.rates.parameters(), home, strict=True)),
            torch.zeros(()),
        )
        return _path_error(own, data, data.u.shape[1]) + pull * far

    _descend(own, error, iterations)
    return _finished(own, data)


@torch.no_grad()
def trajectory_error(model: Metamodel, data: Paths) -> float:
    """Root mean square error of whole trajectories, in units of the scales."""
    found = model.trajectory(data.x[:, 0], data.u)
    return float(((found - data.x) / model.scale).square().mean().sqrt())


def _finished(model: Metamodel, data: Paths) -> Metamodel:
    model.rates.check()
    model.fit_error = trajectory_error(model, data)
    flat = data.u.flatten(0, 1)
    model.reach = (flat.amin(0), flat.amax(0))
    return model


def _slope_error(model: Metamodel, data: Paths) -> Tensor:
    y = data.x / model.scale
    before, after = model.controlled(y[:, :-1], data.u), y[:, 1:]
    slope = (after - before) / model.dt
    spread = slope.flatten(0, 1).std(0) + 1e-6
    return ((model.rates((before + after) / 2) - slope) / spread).square().mean()


def _path_error(model: Metamodel, data: Paths, segment: int) -> Tensor:
    """Error of trajectories of up to `segment` steps that begin at the data and cover all of it."""
    steps = data.u.shape[1]
    count = math.ceil(steps / segment)
    length = math.ceil(steps / count)
    # Where the parts are not quite equal, the last one begins within the one before.
    starts = [min(place * length, steps - length) for place in range(count)]
    x = torch.cat([data.x[:, s : s + length + 1] for s in starts])
    u = torch.cat([data.u[:, s : s + length] for s in starts])
    y, gaps = x[:, 0], []
    for moment in range(length):
        y = model(y, u[:, moment])
        gaps.append((y - x[:, moment + 1]) / model.scale)
    return torch.stack(gaps, 1).square().mean()


def _descend(model: Metamodel, error: Callable[[], Tensor], iterations: int) -> None:
    parameters = list(model.rates.parameters())
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        # Inside the line search a projection would be a step of its own: only values are bounded.
        loss = error().nan_to_num(nan=_WORST, posinf=_WORST)
        loss.backward()
        for p in parameters:
            p.grad = None if p.grad is None else p.grad.nan_to_num(0.0, 0.0, 0.0)
        return loss

    optimiser.step(closure)
    model.rates.project()
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise SimulationError(
            "The fit of the metamodel leaves the numbers.",
            where=f"family {model.family}",
            next_step="Choose another family, or a shorter segment.",
        )


def _require_counts(data: Paths) -> None:
    wrong = ~(torch.isfinite(data.x) & (data.x >= 0))
    if bool(wrong.any()):
        path, moment, state = wrong.nonzero()[0].tolist()
        raise SimulationError(
            f"A count is {data.x[path, moment, state].item():g}.",
            where=f"path {path}, step {moment}, state {state}",
            expected="counts that are finite and not negative",
        )
