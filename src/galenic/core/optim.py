"""AdamW with decay where it belongs, rates by depth, warm-up and a falling rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from galenic.core.errors import ConfigError
from galenic.core.schedule import Schedule


def parameter_groups(
    module: nn.Module,
    schedule: Schedule,
    depths: Mapping[str, int] | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser, one for each depth, decay and factor of the rate.

    Vectors (biases, norms, scales) are never decayed. With `depths` the rate of depth d is
    lr * layer_decay ** (deepest - d), as in Clark et al. (2020) and BEiT; `rates` holds a further
    factor of some parameters.

    Raises:
        ConfigError: If nothing trains.
    """
    groups: dict[tuple[int, bool, float], dict[str, Any]] = {}
    deepest = max(depths.values(), default=0) if depths else 0
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(name, deepest) if depths else 0
        decays = parameter.ndim > 1
        factor = rates.get(name, 1.0) if rates else 1.0
        rate = schedule.lr * schedule.layer_decay ** (deepest - depth) * factor
        group = groups.setdefault(
            (depth, decays, factor),
            {
                "params": [],
                "lr": rate,
                "weight_decay": schedule.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ConfigError("Nothing of the objective trains.", next_step="Choose another tuner.")
    return list(groups.values())


def optimiser(groups: list[dict[str, Any]], schedule: Schedule) -> torch.optim.AdamW:
    """AdamW over `groups` of :func:`parameter_groups`, in one kernel where the device has it."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(
        groups,
        lr=schedule.lr,
        betas=(0.9, schedule.beta2),
        fused=devices <= {"cpu"} or devices <= {"cuda"},
    )


def rate_factor(schedule: Schedule, steps: int) -> Callable[[int], float]:
    """Factor of the rate at each step: linear warm-up, then down to `min_lr`."""
    warmup = schedule.warmup if schedule.warmup >= 1 else schedule.warmup * steps
    floor = schedule.min_lr / schedule.lr

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
        linear = schedule.decay == "linear"
        left = 1 - progress if linear else 0.5 * (1 + math.cos(math.pi * progress))
        return floor + (1 - floor) * left

    return factor
