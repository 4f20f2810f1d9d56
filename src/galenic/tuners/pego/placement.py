"""Which layers of a network carry a group, and on which rows of their output."""

from __future__ import annotations

import re

from torch import nn

from galenic.core.errors import BackboneError, ConfigError, nearest
from galenic.tuners._calls import Run, uncalled
from galenic.tuners._network import (
    attention,
    cannot_enter,
    is_linear,
    is_under,
    last,
    outer_modules,
    sealed_modules,
    widths,
)
from galenic.tuners.pego.config import PEGOConfig
from galenic.tuners.ssf.placement import in_head

# Thirds of a fused projection that carry a group: query and value.
THIRDS = (0, 2)
# Fused projections with rows [heads, 3, head]: GPT-NeoX, BLOOM, Falcon, Persimmon.
BY_HEAD = {"query_key_value"}


def place(
    network: nn.Module, config: PEGOConfig, run: Run | None = None
) -> dict[str, list[list[int]]]:
    """Ranges of output rows that carry a group, by full name of the layer.

    Layers whose weights are read without a call of them carry none.

    Args:
        network: Any network; layers that carry groups already count as what they wrap.
        config: What is asked for.
        run: One pass through the network; None makes an example from its config.

    Raises:
        BackboneError: If no layer matches, a match is no linear layer or in a head, or a fused
            projection has no three equal parts.
        ConfigError: If rank times groups is more than a layer has room for.
    """
    sealed, blind = sealed_modules(network), uncalled(network, run)
    linear = [
        name
        for name, module in outer_modules(network).items()
        if is_linear(module) and name not in blind and not is_under(name, sealed)
    ]
    wish = config.target_modules
    if wish == "qv":
        names = [n for n in attention(network, ("q", "v", "qkv")) if n not in blind]
        looked_for = "query and value projections, or fused qkv layers, that are called as modules"
    else:
        names = _named(network, linear, wish or [])
        looked_for = f"linear layers that match {wish}"
    if config.last_blocks is not None:
        allowed = last(network, config.last_blocks)
        names = [name for name in names if name in allowed]
    if not names:
        raise cannot_enter(
            network,
            "pego",
            looked_for,
            f"Set target_modules. {nearest(str(wish), linear)} Layers: {_some(linear)}",
        )
    fused = set(attention(network, ("qkv",))) if wish == "qv" else set()
    placed = {}
    for name in names:
        columns, rows = widths(network.get_submodule(name))
        parts = _thirds(name, rows, columns) if name in fused else [[0, rows]]
        room = min(columns, parts[0][1] - parts[0][0])
        if config.rank * config.groups > room:
            raise ConfigError(
                f"{config.groups} groups of rank {config.rank} do not fit '{name}', which has "
                f"{room} dimensions.",
                where="tuner.rank",
                expected=f"rank x groups of at most {room}",
            )
        placed[name] = parts
    return placed


def _thirds(name: str, rows: int, columns: int) -> list[list[int]]:
    leaf = name.rpartition(".")[2]
    if leaf in BY_HEAD:
        raise BackboneError(
            f"The fused projection '{name}' holds query, key and value of one head after another.",
            expected="all queries, then all keys, then all values",
            next_step=f"Set target_modules: [{leaf}], which puts the groups on all of its rows.",
        )
    if rows != 3 * columns:
        raise BackboneError(
            f"The fused projection '{name}' maps {columns} to {rows}: its query, key and value "
            "differ in width.",
            expected="three equal parts",
            next_step="Name separate layers in target_modules.",
        )
    return [[third * columns, (third + 1) * columns] for third in THIRDS]


def _named(network: nn.Module, linear: list[str], wish: list[str] | str) -> list[str]:
    if isinstance(wish, str):
        names = [name for name in linear if re.fullmatch(wish, name)]
    else:
        names = [n for n in linear if any(n == w or n.endswith("." + w) for w in wish)]
    heads = [name for name in names if in_head(name)]
    if heads:
        raise BackboneError(
            f"The pattern matches the head '{heads[0]}'.",
            expected="layers of the backbone; the head trains anyway",
        )
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
