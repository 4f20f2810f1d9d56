"""Where the parts of PETL-AST go; decided before anything is changed."""

from __future__ import annotations

from typing import Any

from torch import nn

from galenic.core.errors import BackboneError
from galenic.tuners._bottleneck import waist_of
from galenic.tuners._calls import Run, calls
from galenic.tuners._network import cannot_enter
from galenic.tuners._prompts import check_interface, place_for_prompts
from galenic.tuners._sublayers import (
    LOOKED_FOR,
    Sublayer,
    final_norm,
    is_plain_chain,
    modules_by_plain_name,
    require_two_way,
    sublayers,
)
from galenic.tuners.petl_ast.config import PETLASTConfig

SITES = {"ffn": ("mlp",), "mhsa": ("attention",), "both": ("attention", "mlp")}


def place(network: nn.Module, config: PETLASTConfig, run: Run | None = None) -> None:
    """Fill `config.placed` and `config.norms` for `network`.

    Args:
        network: Any network.
        config: What is asked for.
        run: One pass through the network; None makes an example from its config.

    Raises:
        BackboneError: If the variant cannot enter; says what was looked for and found.
        ConfigError: If a bottleneck does not fit its width, or there are fewer blocks.
    """
    order = calls(network, run)
    halves = sublayers(network, config.last_blocks, order)
    if not halves:
        raise cannot_enter(
            network, "petl_ast", LOOKED_FOR, "Use ssf or bitfit, which enter any network."
        )
    if config.variant in ("conformer", "prompt", "deep-prompt"):
        require_two_way(network, "petl_ast", "Use variant: pfeiffer, houlsby or prefix.")
    feeding: list[str] = []
    if config.variant in ("prompt", "deep-prompt"):
        config.placed = _prompts(network, halves, config)
    elif config.variant == "prefix":
        config.placed = _prefixes(network, halves, config)
    else:
        config.placed, feeding = _adapters(network, halves, config)
    norms = feeding if config.train_layernorm else []
    end = final_norm(network, order)
    if config.train_final_norm and end is not None:
        norms = [*norms, end]
    config.norms = list(dict.fromkeys(norms))


def _adapters(
    network: nn.Module, halves: list[Sublayer], config: PETLASTConfig
) -> tuple[dict[str, Any], list[str]]:
    sites = config.sites
    if sites == "auto":
        sites = "both" if config.variant == "houlsby" else "ffn"
    placed: dict[str, Any] = {}
    norms: list[str] = []
    for half in halves:
        if half.kind not in SITES[sites]:
            continue
        if config.placement == "parallel" and half.call is None and half.tap is None:
            raise cannot_enter(
                network,
                "petl_ast",
                f"a module that is the {half.kind} of {half.block}, or one that is called with "
                "its input",
                "Use placement: sequential, which only needs its last layer.",
            )
        size = waist_of(half.width, config.reduction, config.bottleneck, default=64, floor=8)
        tap = half.tap if half.call is None and config.placement == "parallel" else None
        placed[half.call or half.down] = {
            "role": "adapter",
            "width": half.width,
            "size": size,
            "tap": None if tap is None else [tap.module, tap.index],
            "norm": half.norm if _follows(network, half, config) else None,
        }
        if half.norm is not None:
            norms.append(half.norm)
    return placed, norms


def _follows(network: nn.Module, half: Sublayer, config: PETLASTConfig) -> bool:
    """Whether the adapter's input is made by a layer norm that keeps what it was made from."""
    bare = config.variant != "conformer" and config.placement == "parallel" and not half.post
    norm = modules_by_plain_name(network).get(half.norm or "")
    return bare and isinstance(norm, nn.LayerNorm) and norm.elementwise_affine


def _prompts(network: nn.Module, halves: list[Sublayer], config: PETLASTConfig) -> dict[str, Any]:
    if not is_plain_chain(network):
        raise BackboneError(
            f"'petl_ast' cannot put prompts into {type(network).__name__}: its blocks stand in "
            "stages or windows.",
            expected="a plain chain of transformer blocks at one width",
            next_step="Use variant: conformer, pfeiffer, houlsby or prefix.",
        )
    at, distilled = place_for_prompts(network)
    blocks = list(dict.fromkeys(half.block for half in halves))
    count = config.prompts or 25
    drop = int(distilled and config.drop_distillation)
    # Every block is wrapped, the untouched ones too: a chain of one kind stays a chain.
    every = list(dict.fromkeys(half.block for half in sublayers(network)))
    deep = config.variant == "deep-prompt"
    placed: dict[str, Any] = {}
    for block in every:
        role = "insert" if block == blocks[0] else "pass"
        if block not in blocks:
            role = "before"
        elif deep and role == "pass":
            role = "replace"
        strip = config.prompt_output == "strip" and block == every[-1]
        placed[block] = {
            "role": role, "width": halves[0].width, "count": count, "at": at, "drop": drop,
            "strip": strip,
        }  # fmt: skip
    return placed


def _prefixes(network: nn.Module, halves: list[Sublayer], config: PETLASTConfig) -> dict[str, Any]:
    modules = modules_by_plain_name(network)
    placed: dict[str, Any] = {}
    for half in halves:
        if half.kind != "attention":
            continue
        check_interface(modules[half.core], "petl_ast")
        width = _key_width(modules[half.core], half.width)
        placed[half.core] = {
            "role": "prefix", "width": width, "patch_width": half.width,
            "count": (config.prompts or 24) // 2,
        }  # fmt: skip
    return placed


def _key_width(core: nn.Module, width: int) -> int:
    """Channels of the keys: less than the width where several queries share one key."""
    from galenic.tuners._network import attention, widths

    names = attention(core, ("k",)) or [
        n for n, _ in core.named_children() if n in ("k_proj", "key", "k_lin", "k")
    ]
    return widths(core.get_submodule(names[0]))[1] if names else width
