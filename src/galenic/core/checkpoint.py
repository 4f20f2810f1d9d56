"""What training moves: taken out of a module, and put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from galenic.core.errors import WeightsError


def trained(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all that training moves: parameters with gradients, and buffers."""
    state: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if p.requires_grad}
    state |= dict(module.named_buffers())
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def load_trained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what :func:`trained` took.

    Raises:
        WeightsError: If the names differ.
    """
    places: dict[str, Tensor] = dict(module.named_buffers())
    places.update(module.named_parameters())
    wanted = {n for n, p in module.named_parameters() if p.requires_grad}
    wanted |= {n for n, _ in module.named_buffers()}
    if wanted != set(state):
        odd = sorted(wanted ^ set(state))
        raise WeightsError(
            f"The checkpoint is of another objective: {len(odd)} tensors differ, first '{odd[0]}'.",
            next_step="Resume with the config that the run was started with.",
        )
    with torch.no_grad():
        for name, value in state.items():
            places[name].copy_(value)
