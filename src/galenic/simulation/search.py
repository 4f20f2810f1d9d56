"""Controllers that are searched on the twin itself, without gradients: the baselines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from galenic.core.errors import ConfigError, MissingExtraError
from galenic.simulation.controllers import Fraction, Policy
from galenic.simulation.objective import Objective
from galenic.simulation.rollout import on_twin
from galenic.simulation.twin import Twin


def cost_on_twin(
    twin: Twin, policy: Policy, objective: Objective, seeds: Sequence[int], steps: int
) -> float:
    """Mean J over the seeds."""
    found = on_twin(twin, policy, seeds, steps)
    return float(objective(found.x, found.u).mean())


def best_constant(policy: Fraction, cost: Callable[[], float], trials: int) -> int:
    """Try a grid of constant controls, and leave the best in `policy`.

    Args:
        policy: Whose parameters are set.
        cost: Mean J of the policy as it is.
        trials: Points at most.

    Returns:
        Points that were tried.

    Raises:
        ConfigError: If not even two levels a channel fit into the trials.
    """
    free = (policy.high > 0).nonzero().squeeze(1).tolist()
    levels = int(trials ** (1 / max(len(free), 1)) + 1e-9)
    if levels < 2:
        raise ConfigError(
            f"{trials} trials are no grid over {len(free)} channels.",
            where="budget",
            expected=f"at least {2 ** len(free)} trials",
        )
    best, found = float("inf"), policy.theta.detach().clone()
    points = list(itertools.product(torch.linspace(0, 1, levels).tolist(), repeat=len(free)))
    for point in points:
        with torch.no_grad():
            policy.theta[free] = torch.tensor(point)
        if (value := cost()) < best:
            best, found = value, policy.theta.detach().clone()
    with torch.no_grad():
        policy.theta.copy_(found)
    return len(points)


def evolve(
    policy: Policy, cost: Callable[[], float], trials: int, *, seed: int, sigma: float = 0.5
) -> int:
    """CMA-ES over all parameters of a policy (Hansen, arXiv 1604.00772); the best stays in it.

    Args:
        policy: Whose parameters are set.
        cost: Mean J of the policy as it is.
        trials: Evaluations at most.
        seed: Of the draws.
        sigma: First step size.

    Returns:
        Evaluations.

    Raises:
        MissingExtraError: If `cma` is not installed.
        ConfigError: For fewer than three trials.
    """
    try:
        import cma
    except ImportError:
        raise MissingExtraError.of("cma", "simulation") from None
    parameters = list(policy.parameters())

    def value(vector: Sequence[float]) -> float:
        vector_to_parameters(torch.as_tensor(vector, dtype=torch.float32), parameters)
        return cost()

    start = parameters_to_vector(parameters).detach().double().numpy()
    if trials < 3:
        raise ConfigError(
            f"{trials} trials are no search.", where="budget", expected="at least 3 trials"
        )
    usual = 4 + int(3 * math.log(len(start)))
    options = {
        "seed": seed % 2**31 + 1,
        # Whole generations that use up the trials.
        "popsize": trials // -(-trials // usual),
        "verbose": -9,
        "verb_log": 0,
    }
    search = cma.CMAEvolutionStrategy(start, sigma, options)
    best, found, tried = float("inf"), start, 0
    while tried + search.popsize <= trials:
        asked = search.ask()
        values = [value(vector) for vector in asked]
        search.tell(asked, values)
        tried += len(asked)
        if min(values) < best:
            best, found = min(values), asked[values.index(min(values))]
    vector_to_parameters(torch.as_tensor(found, dtype=torch.float32), parameters)
    return tried
