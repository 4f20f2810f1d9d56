"""Which tensors of a network may get a mask."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from galenic.core.errors import BackboneError
from galenic.models.anatomy import is_norm
from galenic.tuners._network import cannot_enter
from galenic.tuners._sparse import places_of
from galenic.tuners.ssf.placement import in_head


def maskable_names(network: nn.Module, maskable: str, freeze: Sequence[str]) -> list[str]:
    """Full names of the parameters that may get a mask, in the network's order.

    A tensor with several places counts once; if one of them is frozen, it is left out.

    Args:
        network: Any network.
        maskable: `encoder`, for all outside heads, or a pattern that a full name must match.
        freeze: `norm` for every normalisation layer; else a module, by its name or its end.

    Raises:
        BackboneError: If there is none.
    """
    owners = {id(module): name for name, module in network.named_modules()}
    found = []
    for name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            continue
        if maskable != "encoder" and not re.fullmatch(maskable, name):
            continue
        holders = [owner for owner, _ in places_of(network, name)]
        if any(_frozen(owners[id(m)], m, maskable, freeze) for m in holders):
            continue
        found.append(name)
    if not found:
        if maskable == "encoder":
            raise cannot_enter(
                network,
                "composable_sft",
                "parameters outside heads and frozen modules",
                "Set tuner.maskable or tuner.freeze.",
            )
        names = [name for name, _ in network.named_parameters()]
        raise BackboneError(
            f"'{maskable}' matches no parameter of {type(network).__name__} that is not frozen.",
            where="tuner.maskable",
            expected=f"a pattern of full names such as {', '.join(names[:3])}",
        )
    return found


def _frozen(name: str, module: nn.Module, maskable: str, freeze: Sequence[str]) -> bool:
    if maskable == "encoder" and in_head(name):
        return True
    if "norm" in freeze and is_norm(module):
        return True
    padded = f".{name}."
    return any(f".{word}." in padded for word in freeze)
