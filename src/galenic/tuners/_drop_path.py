"""Stochastic depth (Huang et al., ECCV 2016, arXiv 1603.09382) on any chain of transformer blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from galenic.tuners._network import cannot_enter
from galenic.tuners._sublayers import LOOKED_FOR, is_plain_chain, modules_by_plain_name, sublayers


class DropPath:
    """Forward hook that leaves out what a branch gives, sample by sample, in training.

    Args:
        rate: Chance of it; what stays is scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """`output` [B, ...], with some samples zero."""
        if not module.training:
            return output
        kept = output.new_empty(len(output), *(1,) * (output.ndim - 1)).bernoulli_(1 - self.rate)
        return output * kept / (1 - self.rate)


def place_drop_path(network: nn.Module, rate: float) -> None:
    """Drop both branches of every block: never in the first block, with `rate` in the last.

    Args:
        network: Called again, it has this rate and no other.
        rate: Of the last block; 0 drops nothing.

    Raises:
        BackboneError: If the network has no plain chain of transformer blocks.
    """
    for module in network.modules():
        found = module._forward_hooks
        for key in [key for key, hook in found.items() if isinstance(hook, DropPath)]:
            del found[key]
    if not rate:
        return
    halves = sublayers(network)
    if not halves or not is_plain_chain(network):
        raise cannot_enter(network, "drop_path", f"one chain of {LOOKED_FOR}", "tuner.drop_path=0")
    blocks = list(dict.fromkeys(half.block for half in halves))
    modules = modules_by_plain_name(network)
    rates = torch.linspace(0, rate, len(blocks)).tolist()
    for half in halves:
        modules[half.down].register_forward_hook(DropPath(rates[blocks.index(half.block)]))
