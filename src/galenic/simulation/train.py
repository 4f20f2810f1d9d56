"""Train a policy by the gradient of J through a model: no labelled controls are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from galenic.core.errors import SimulationError
from galenic.simulation.controllers import Policy
from galenic.simulation.metamodel import Metamodel
from galenic.simulation.objective import Objective
from galenic.simulation.rollout import Paths, on_metamodel, through_twin
from galenic.simulation.twin import Twin


def through_metamodel(
    model: Metamodel,
    policy: Policy,
    objective: Objective,
    start: Tensor,
    *,
    steps: int,
    epochs: int,
    lr: float,
) -> list[float]:
    """Train in place by back-propagation through the solver.

    Args:
        model: Fitted.
        policy: To train.
        objective: J.
        start: Counts [runs, states] to start from.
        steps: Of the horizon.
        epochs: Steps of Adam.
        lr: Of Adam.

    Returns:
        J of every epoch.
    """
    paths = partial(on_metamodel, model, policy, start, steps)
    return descend(policy, lambda _: paths(), objective, epochs=epochs, lr=lr)


def through_hard_model(
    twin: Twin,
    model: Metamodel,
    policy: Policy,
    objective: Objective,
    seeds: list[int],
    *,
    steps: int,
    epochs: int,
    lr: float,
) -> list[float]:
    """Train in place on the twin itself, with straight-through gradients.

    Args:
        twin: Runs forward.
        model: Its Jacobian runs backward.
        policy: To train.
        objective: J.
        seeds: Of all epochs together; each takes its own share of them.
        steps: Of the horizon.
        epochs: Steps of Adam.
        lr: Of Adam.

    Returns:
        J of every epoch.
    """
    each = len(seeds) // epochs

    def paths(epoch: int) -> Paths:
        return through_twin(twin, model, policy, seeds[epoch * each : (epoch + 1) * each], steps)

    return descend(policy, paths, objective, epochs=epochs, lr=lr)


def descend(
    policy: Policy,
    paths: Callable[[int], Paths],
    objective: Objective,
    *,
    epochs: int,
    lr: float,
) -> list[float]:
    """Adam on the mean J of the paths of each epoch; the rate falls to zero, gradients to norm 1.

    Raises:
        SimulationError: If J or the policy leaves the numbers.
    """
    optimiser = torch.optim.Adam(policy.parameters(), lr=lr)
    fall = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=epochs)
    history = []
    for epoch in range(epochs):
        optimiser.zero_grad()
        found = paths(epoch)
        loss = objective(found.x, found.u).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        fall.step()
        history.append(loss.item())
        if not all(bool(torch.isfinite(part).all()) for part in (loss, *policy.parameters())):
            raise SimulationError(
                f"The metamodel runs away in epoch {epoch + 1}.",
                where="training of the controller",
                expected="a finite J with finite gradients",
                next_step="Fit it on more patterns, choose another family, or a shorter horizon.",
            )
    return history
