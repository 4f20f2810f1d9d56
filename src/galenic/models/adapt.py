"""Fit a pretrained network to another number of input channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from galenic.core.errors import BackboneError
from galenic.models.anatomy import CONVOLUTIONS


def inflate_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution read `channels` channels.

    Each new kernel is the sum over the old channels, divided by the new count: an input whose
    channels are all alike gives the response that the old network gave to the same picture.

    Raises:
        BackboneError: If the network starts with no convolution.
    """
    place = next(
        ((name, m) for name, m in network.named_modules() if isinstance(m, CONVOLUTIONS)), None
    )
    if place is None:
        raise BackboneError(
            f"{type(network).__name__} has no convolution to take {channels} channels.",
            next_step="Leave input.channels out.",
        )
    name, stem = place
    old = stem.in_channels
    if old == channels:
        return
    if stem.groups != 1:
        raise BackboneError(f"The first convolution '{name}' is grouped; it cannot be inflated.")
    with torch.no_grad():
        summed = stem.weight.sum(dim=1, keepdim=True) / channels
        repeats = (1, channels, *([1] * (stem.weight.ndim - 2)))
        stem.weight = nn.Parameter(summed.repeat(repeats), requires_grad=stem.weight.requires_grad)
    stem.in_channels = channels
    module: Any
    for module in network.modules():
        if getattr(module, "num_channels", None) == old:
            module.num_channels = channels
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "num_channels", None) == old:
            config.num_channels = channels
