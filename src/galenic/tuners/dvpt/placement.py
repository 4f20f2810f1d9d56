"""Where the parts of DVPT go; decided before anything is changed."""

from __future__ import annotations

from typing import Any

from torch import nn

from galenic.core.errors import BackboneError
from galenic.tuners._bottleneck import check_range
from galenic.tuners._calls import Run, calls
from galenic.tuners._network import cannot_enter
from galenic.tuners._prompts import place_for_prompts
from galenic.tuners._sublayers import (
    LOOKED_FOR,
    Sublayer,
    Tap,
    entry_norm,
    is_plain_chain,
    require_two_way,
    sublayers,
)
from galenic.tuners.dvpt.config import DVPTConfig

PLAIN = {"num_prompts": 50, "latent_dim": 20, "share_every": 3}
STAGES = {"num_prompts": 10, "latent_dim": 10, "share_every": 2}


def place(network: nn.Module, config: DVPTConfig, run: Run | None = None) -> None:
    """Fill `config.placed`, and every choice that was left to us, for `network`.

    Args:
        network: Any network.
        config: What is asked for.
        run: One pass through the network; None makes an example from its config.

    Raises:
        BackboneError: If the variant cannot enter; says what was looked for and found.
        ConfigError: If the bottleneck does not fit its width, or there are fewer blocks.
    """
    order = calls(network, run)
    halves = [h for h in sublayers(network, config.last_blocks, order) if h.kind == "mlp"]
    if not halves:
        raise cannot_enter(
            network, "dvpt", LOOKED_FOR, "Use ssf or bitfit, which enter any network."
        )
    require_two_way(network, "dvpt", "Use petl_ast with variant pfeiffer or houlsby.")
    chain = is_plain_chain(network)
    variant = ("paper" if chain else "repo") if config.variant == "auto" else config.variant
    if variant != "repo" and not chain:
        raise BackboneError(
            f"'dvpt' cannot put tokens into {type(network).__name__}: its blocks stand in stages "
            "or windows.",
            expected="a plain chain of transformer blocks at one width",
            next_step="Use variant: repo, which adds to tokens that are there.",
        )
    sources = {half.block: _source(network, half, variant) for half in halves}
    chosen = {
        key: getattr(config, key) or default
        for key, default in (PLAIN if chain else STAGES).items()
    }
    for half in halves:
        what = f"a block of width {half.width}"
        check_range(chosen["latent_dim"], 1, half.width, "latent_dim", what)
    owners = _owners(halves, chosen["share_every"])
    spots: dict[str, dict[str, Any]] = {
        half.block: {
            "role": "add" if variant == "repo" else "pass",
            "width": half.width,
            "source": [sources[half.block].module, sources[half.block].index],
            "sink": half.call or half.down,
            "owner": owners[half.block],
        }
        for half in halves
    }
    if variant != "repo":
        spots = _with_tokens(network, halves, spots)
    config.variant = variant
    for key, value in chosen.items():
        setattr(config, key, value)
    config.placed = spots


def _source(network: nn.Module, half: Sublayer, variant: str) -> Tap:
    """Where the state that enters the feed-forward half passes, before its norm."""
    if not half.post and half.norm is not None:
        return Tap(half.norm, 0)
    if variant == "repo":
        raise BackboneError(
            f"'dvpt' with variant repo cannot enter {half.block} of {type(network).__name__}: no "
            "norm stands before its feed-forward.",
            expected="blocks that normalise before each half (pre-norm)",
            next_step="Use variant: paper or repo-vit in a plain chain of blocks, else ssf.",
        )
    if half.tap is not None:
        return half.tap
    if half.call is not None:
        return Tap(half.call, 0)
    raise cannot_enter(
        network, "dvpt", f"where the input of {half.block}'s feed-forward passes", "Use ssf."
    )


def _owners(halves: list[Sublayer], every: int) -> dict[str, str]:
    """For each block the one that holds its bottleneck; widths do not mix."""
    owners: dict[str, str] = {}
    group: list[Sublayer] = []
    for half in halves:
        if not group or len(group) == every or group[0].width != half.width:
            group = []
        group.append(half)
        owners[half.block] = group[0].block
    return owners


def _with_tokens(
    network: nn.Module, halves: list[Sublayer], spots: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    at, _ = place_for_prompts(network)
    every = [half.block for half in sublayers(network) if half.kind == "mlp"]
    first = halves[0].block
    entry = entry_norm(network) if first == every[0] else None
    spots[first] |= {"role": "insert", "entry": entry}
    # Every block is wrapped, the untouched ones too: a chain of one kind stays a chain.
    placed = {}
    for block in every:
        placed[block] = {"at": at, **spots.get(block, {"role": "before"})}
    return placed
