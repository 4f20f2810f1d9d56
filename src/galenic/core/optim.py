"""AdamW with decay where it belongs, rates by depth, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from galenic.core.errors import ConfigError
from galenic.core.schedule import Schedule


def parameter_groups(
    module: nn.Module, schedule: Schedule, depths: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimiser, one a pair of depth and decay.

    Vectors (biases, norms, scales) are never decayed. With `depths` the rate of depth d is
    lr * layer_decay ** (deepest - d), as in Clark et al. (2020) and BEiT.

    Raises:
        ConfigError: If nothing trains.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    deepest = max(depths.values(), default=0) if depths else 0
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depths.get(name, deepest) if depths else 0
        decays = parameter.ndim > 1
        rate = schedule.lr * schedule.layer_decay ** (deepest - depth)
        group = groups.setdefault(
            (depth, decays),
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


def optimiser(groups: list[dict[str, Any]], lr: float) -> torch.optim.AdamW:
    """AdamW over `groups`, in one kernel where the device has it.

    Args:
        groups: Of :func:`parameter_groups`.
        lr: For groups that name none.
    """
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=lr, fused=devices <= {"cpu"} or devices <= {"cuda"})


def cosine_factor(schedule: Schedule, steps: int) -> Callable[[int], float]:
    """Factor of the rate at each step: linear warm-up, then cosine down to `min_lr`."""
    warmup = schedule.warmup if schedule.warmup >= 1 else schedule.warmup * steps
    floor = schedule.min_lr / schedule.lr

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(steps - warmup, 1)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return factor
