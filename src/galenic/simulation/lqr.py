"""The linear-quadratic case, whose best control is known: a check of everything else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev

from galenic.simulation.metamodel import Metamodel
from galenic.simulation.objective import Objective


def riccati(
    a: Tensor, b: Tensor, q: Tensor, r: Tensor, start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Least sum over t = 1 .. T of x_t' Q x_t + u_{t-1}' R u_{t-1}, with x_{t+1} = A x_t + B u_t.

    Args:
        a: [n, n].
        b: [n, m].
        q: [n, n], positive semi-definite.
        r: [m, m], positive definite.
        start: x_0 [n].
        steps: T.

    Returns:
        The best controls [T, m], and their sum.
    """
    ahead, gains = q, []
    for _ in range(steps):
        gain = torch.linalg.solve(r + b.T @ ahead @ b, b.T @ ahead @ a)
        now = a.T @ ahead @ (a - b @ gain)
        gains.append(gain)
        ahead = q + now
    x, controls = start, []
    for gain in reversed(gains):
        controls.append(-gain @ x)
        x = a @ x + b @ controls[-1]
    # x_0 itself cannot be changed, and does not count.
    return torch.stack(controls), start @ now @ start


def best_cost(model: Metamodel, objective: Objective, start: Tensor, steps: int) -> Tensor:
    """The least J of a linear metamodel with targets of 0, judged over the whole horizon.

    Args:
        model: Of first order, without a constant, and with controls that only add.
        objective: With `late` 1.
        start: Counts [states].
        steps: Of the horizon.
    """
    zero_x, zero_u = torch.zeros_like(start), torch.zeros(len(model.controls))
    a, b = jacrev(model, argnums=(0, 1))(zero_x, zero_u)
    q = torch.diag(1 / objective.scale**2) / steps
    r = objective.control_weight * torch.diag(1 / objective.high**2) / steps
    return riccati(a.double(), b.double(), q.double(), r.double(), start.double(), steps)[1]
