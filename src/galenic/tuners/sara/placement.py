"""Which entries of which parameters train."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.core.fingerprint import fingerprint_tensors
from galenic.tuners._network import cannot_enter, last
from galenic.tuners._selection import select
from galenic.tuners.sara.config import SaRAConfig
from galenic.tuners.ssf.placement import in_head

MANY = 0.3


@dataclass(frozen=True)
class Mask:
    """The entries of one parameter that train.

    Attributes:
        index: int64 [k], flat places, ascending.
        threshold: All of them are smaller; infinite where the choice was not by size.
    """

    index: Tensor
    threshold: float


def targets(network: nn.Module, config: SaRAConfig) -> list[str]:
    """Full names of the parameters that may be entered; a shared one by its first name.

    Raises:
        BackboneError: If there is none.
    """
    allowed = None if config.last_blocks is None else last(network, config.last_blocks)
    names = []
    for name, parameter in network.named_parameters():
        owner = name.rpartition(".")[0]
        # Of an adapter that is there already.
        inner = any(part in ("sara_values", "modules_to_save") for part in name.split("."))
        if inner or not parameter.is_floating_point() or not parameter.numel():
            continue
        if allowed is not None and owner not in allowed:
            continue
        if config.modules_to_save and _saved(name, config.modules_to_save):
            continue
        wanted = not in_head(owner) if config.target == "all" else re.fullmatch(config.target, name)
        if wanted:
            names.append(name)
    if not names:
        raise cannot_enter(
            network,
            "sara",
            "floating-point parameters outside heads"
            if config.target == "all"
            else f"floating-point parameters that match '{config.target}'",
            "Set tuner.target.",
        )
    return names


def choose(network: nn.Module, config: SaRAConfig) -> dict[str, Mask]:
    """The masks of all parameters that have one, by full name.

    Raises:
        BackboneError: If nothing is chosen, a weight is not finite, or the weights are not here
            (a network on the meta device).
    """
    names = targets(network, config)
    live = {name: network.get_parameter(name).detach() for name in names}
    if any(p.is_meta for p in live.values()):
        raise BackboneError(
            "'sara' chooses by the size of the weights, and this network has none yet.",
            expected="a network whose weights are loaded",
            next_step="Load it before the adapter (low_cpu_mem_usage=False).",
        )
    if config.threshold is not None:
        tau = config.threshold
        found = {n: (p.reshape(-1).abs() < tau).nonzero().squeeze(1) for n, p in live.items()}
        masks = {name: Mask(index, tau) for name, index in found.items() if len(index)}
    else:
        masks = _by_proportion(live, config)
    size = sum(p.numel() for p in live.values())
    count = sum(len(mask.index) for mask in masks.values())
    if not count:
        raise BackboneError(
            f"No weight of {type(network).__name__} is smaller than {config.threshold}.",
            where="tuner.threshold",
            expected="a threshold above the smallest weight",
            next_step="Set tuner.proportion instead.",
        )
    if config.threshold is not None and count > MANY * size:
        zeros = sum(int((p == 0).sum()) for p in live.values())
        warnings.warn(
            f"sara trains {count / size:.0%} of the weights, {zeros / size:.0%} of which are exact "
            "zeros; set a smaller threshold, or a proportion",
            stacklevel=3,
        )
    return masks


def fingerprint(masks: dict[str, Mask]) -> str:
    """Of the places alone."""
    return fingerprint_tensors({name: mask.index for name, mask in masks.items()})


def _by_proportion(live: dict[str, Tensor], config: SaRAConfig) -> dict[str, Mask]:
    assert config.proportion is not None
    groups = [list(live)] if config.scope == "global" else [[name] for name in live]
    order = list(live)

    def score(name: str) -> Tensor:
        if config.select != "random":
            return live[name].abs()
        draw = torch.Generator().manual_seed(config.seed * 1_000_003 + order.index(name))
        return torch.rand(live[name].shape, generator=draw).to(live[name].device)

    masks: dict[str, Mask] = {}
    for group in groups:
        size = sum(live[name].numel() for name in group)
        k = max(round(config.proportion * size), 1)
        try:
            found = select(
                {name: partial(score, name) for name in group},
                k,
                largest=config.select == "largest",
                drop_zeros=False,
            )
        except ValueError as error:
            raise BackboneError(f"'sara' cannot choose: {error}.") from None
        # The next float: all that are chosen lie below it.
        tau = torch.tensor(found.threshold).nextafter(torch.tensor(torch.inf)).item()
        if config.select != "smallest":
            tau = float("inf")
        masks.update({name: Mask(index, tau) for name, index in found.index.items()})
    return masks


def _saved(name: str, modules_to_save: Sequence[str]) -> bool:
    return any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in modules_to_save)
