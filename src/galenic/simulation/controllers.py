"""Policies: from counts and time to a control within its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from galenic.simulation.twin import Control, bounds


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` forward, bit for bit; the gradient of `soft` backward."""
    # hard + 0 is hard, as long as soft is finite.
    return hard.detach() + (soft - soft.detach())


class Policy(nn.Module):
    """What steers; every control it gives is within its bounds.

    Args:
        controls: Of the twin.
        limits: Largest control by name; a channel that is not named stays at 0.
    """

    def __init__(self, controls: Sequence[Control], limits: dict[str, float]) -> None:
        super().__init__()
        low, high = bounds(controls)
        free = torch.tensor([control.name in limits for control in controls])
        most = torch.tensor([limits.get(control.name, 0.0) for control in controls])
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.where(free, torch.maximum(low, -most), 0.0))
        self.register_buffer("high", torch.minimum(high, most))

    def begin(self, runs: int) -> None:
        """Forget what was seen of earlier runs."""

    def forward(self, x: Tensor, moment: int) -> Tensor:
        """Controls [runs, controls] at step `moment`, from counts [runs, states]."""
        raise NotImplementedError

    def within(self, share: Tensor) -> Tensor:
        """Shares 0 .. 1 of the way from the lowest to the highest control."""
        return self.low + (self.high - self.low) * share


class NoControl(Policy):
    """The twin is left alone."""

    def forward(self, x: Tensor, moment: int) -> Tensor:
        """Zeros [runs, controls]."""
        return torch.zeros(len(x), len(self.high), device=x.device)


class Fraction(Policy):
    """The same control at every step: a share of each class, one parameter a channel.

    The twin rounds the share of what is there to whole agents. Parameters are clamped to the bounds;
    the clamp is straight-through, so that a parameter at a bound can come back.
    """

    def __init__(self, controls: Sequence[Control], limits: dict[str, float]) -> None:
        super().__init__(controls, limits)
        self.theta = nn.Parameter(torch.full((len(controls),), 0.1))

    def forward(self, x: Tensor, moment: int) -> Tensor:
        """Controls [runs, controls]."""
        share = straight_through(self.theta.clamp(0, 1), self.theta)
        return self.within(share).expand(len(x), -1)


class Neural(Policy):
    """Feedback through a small network: u = low + (high - low) sigmoid(NN(x / scale, t / T)).

    Args:
        controls: Of the twin.
        limits: As of every policy.
        scale: Typical counts [states].
        steps: Of the horizon, T.
        hidden: Widths of the hidden layers.
        draws: Of the first weights.
    """

    def __init__(
        self,
        controls: Sequence[Control],
        limits: dict[str, float],
        *,
        scale: Tensor,
        steps: int,
        hidden: Sequence[int] = (16, 16),
        draws: torch.Generator | None = None,
    ) -> None:
        super().__init__(controls, limits)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.steps = steps
        widths = [len(scale) + 1, *hidden]
        layers: list[nn.Module] = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(a, b), nn.ELU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], len(controls)))
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=draws)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, moment: int) -> Tensor:
        """Controls [runs, controls]."""
        time = torch.full_like(x[:, :1], moment / self.steps)
        return self.within(torch.sigmoid(self.net(torch.cat([x / self.scale, time], 1))))


class OpenLoop(Policy):
    """A plan over time that looks at nothing, one value a channel and step.

    Args:
        controls: Of the twin.
        limits: As of every policy.
        steps: Of the horizon.
    """

    def __init__(self, controls: Sequence[Control], limits: dict[str, float], steps: int) -> None:
        super().__init__(controls, limits)
        self.plan = nn.Parameter(torch.zeros(steps, len(controls)))

    def forward(self, x: Tensor, moment: int) -> Tensor:
        """Controls [runs, controls]."""
        return self.within(torch.sigmoid(self.plan[moment])).expand(len(x), -1)


class Given(Policy):
    """Controls that are known ahead: patterns to fit on, or what was done to a patient.

    Args:
        controls: Of the twin.
        u: [runs, T, controls].
    """

    def __init__(self, controls: Sequence[Control], u: Tensor) -> None:
        super().__init__(controls, {})
        self.u: Tensor
        self.register_buffer("u", u)

    def forward(self, x: Tensor, moment: int) -> Tensor:
        """Controls [runs, controls]."""
        return self.u[:, moment]


class PID(Policy):
    """Proportional, integral and derivative action on the scaled error of one state.

    Args:
        controls: Of the twin.
        limits: As of every policy.
        state: Place of the state that is watched.
        target: Its wished count.
        scale: Its typical count.
    """

    def __init__(
        self,
        controls: Sequence[Control],
        limits: dict[str, float],
        *,
        state: int,
        target: float,
        scale: float,
    ) -> None:
        super().__init__(controls, limits)
        self._state, self._target, self._scale = state, target, scale
        self.gains = nn.Parameter(torch.zeros(3, len(controls)))
        self._sum: Any = 0.0
        self._last: Any = None

    def begin(self, runs: int) -> None:
        """Clear the integral and the last error."""
        self._sum, self._last = torch.zeros(runs, 1), None

    def forward(self, x: Tensor, moment: int) -> Tensor:
        """Controls [runs, controls]."""
        error = (self._target - x[:, self._state, None]) / self._scale
        self._sum = self._sum + error
        slope = torch.zeros_like(error) if self._last is None else error - self._last
        self._last = error
        parts = torch.stack([error, self._sum / 10, slope], dim=-1)  # [runs, 1, 3]
        asked = (parts @ self.gains).squeeze(1) * self.high
        return torch.minimum(torch.maximum(asked, self.low), self.high)
