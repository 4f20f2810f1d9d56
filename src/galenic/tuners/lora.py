"""LoRA: low-rank updates of the attention projections, by peft.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.core.errors import ConfigError
from galenic.tuners import Capabilities

if TYPE_CHECKING:
    from torch import Tensor, nn

    from galenic.models.backbone import Backbone
    from galenic.tuners._calls import Run

# What peft puts before the names of a network's layers.
_PREFIX = "base_model.model."

CAPABILITIES = Capabilities(
    paper="Hu et al., LoRA, ICLR 2022, arXiv 2106.09685",
    mergeable=True,
    exact_unmerge=False,
    identity_at_start=True,
    enters=("vit", "swin", "bert"),
    gaps={
        "exact_unmerge": "peft subtracts the update again, which rounds differently",
        "cnn": "no attention projections; name layers in target_modules to enter one",
        "convnext": "no attention projections; use target_modules: all-linear",
    },
)


class Config(BaseConfig):
    """Train low-rank updates."""

    method: Literal["lora"] = Field("lora", description="This tuner.")
    rank: int = Field(8, ge=1, description="Rank of each update; at most the layer's width.")
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before each update.")
    target_modules: Literal["attention", "all-linear"] | list[str] | str = Field(
        "attention",
        description="attention, all-linear, a list of names or a pattern.",
    )
    last_blocks: int | None = Field(
        None, ge=1, description="Only the last so many blocks; the rest is a frozen prefix."
    )


def targets(network: nn.Module, config: Config, run: Run | None = None) -> list[str]:
    """Full names of the layers that get an update.

    Layers whose weights are read without a call of them get none.

    Args:
        network: Any network.
        config: What is asked for.
        run: One pass through the network; None makes an example from its config.

    Raises:
        BackboneError: If there are none.
    """
    import re

    from galenic.tuners._calls import uncalled
    from galenic.tuners._network import (
        attention,
        cannot_enter,
        is_linear,
        is_under,
        last,
        sealed_modules,
    )
    from galenic.tuners.ssf.placement import in_head, is_conv

    wish = config.target_modules
    layers = [n for n, m in network.named_modules() if is_linear(m) or is_conv(m)]
    sealed = sealed_modules(network)
    layers = [n for n in layers if not is_under(n, sealed)]
    if wish == "attention":
        names = attention(network, ("q", "k", "v", "qkv", "out"))
        looked_for = "attention projections (q, k, v, qkv or out layers) that are called as modules"
    elif wish == "all-linear":
        names = [n for n in layers if is_linear(network.get_submodule(n)) and not in_head(n)]
        looked_for = "linear layers outside the head"
    elif isinstance(wish, str):
        names = [n for n in layers if re.fullmatch(wish, n)]
        looked_for = f"linear or convolution layers that match '{wish}'"
    else:
        names = [n for n in layers if any(n == w or n.endswith("." + w) for w in wish)]
        looked_for = f"linear or convolution layers named {', '.join(wish)}"
    blind = uncalled(network, run)
    names = [name for name in names if name not in blind]
    if config.last_blocks is not None:
        allowed = last(network, config.last_blocks)
        names = [name for name in names if name in allowed]
    if not names:
        raise cannot_enter(
            network, "lora", looked_for, f"Set tuner.target_modules. Layers: {_some(layers)}"
        )
    return names


def attach(backbone: Backbone, config: Config) -> None:
    """Wrap `backbone.network` in peft's LoRA.

    Raises:
        BackboneError: If no layer matches.
        ConfigError: If the rank is more than a layer's width.
    """
    from galenic.tuners._network import freeze

    network = backbone.network
    names = targets(network, config, run=lambda: backbone(**backbone.example()))
    for name in names:
        weight: Any = network.get_submodule(name).weight
        room = min(int(weight.shape[0]), weight.numel() // int(weight.shape[0]))
        if config.rank > room:
            raise ConfigError(
                f"rank is {config.rank}, but '{name}' has only {room} dimensions.",
                where="tuner.rank",
                expected=f"1 to {room}",
            )
    freeze(network)
    backbone.network = _wrapped(network, names, config.rank, config.alpha, config.dropout)


def hold(backbone: Backbone, state: Mapping[str, Tensor], rank: int, alpha: float) -> None:
    """Wrap `backbone.network` in a LoRA that holds given factors, of any rank.

    Args:
        backbone: Whose network is not tuned yet.
        state: `lora_A` [rank, ...] and `lora_B` [out, rank, ...] under the names that peft saves.
        rank: Of all of them.
        alpha: Their product is scaled by alpha / rank.

    Raises:
        WeightsError: If the tensors do not fit the network; each is named.
    """
    from galenic.tuners import put

    layers = {name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in state}
    backbone.network = _wrapped(backbone.network, sorted(layers), rank, alpha, 0.0)
    put(backbone, state)


def _wrapped(
    network: nn.Module, names: Iterable[str], rank: int, alpha: float, dropout: float
) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    from galenic.tuners._network import exactly

    wrapped: nn.Module = get_peft_model(
        network,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]
            lora_dropout=dropout,
            target_modules=exactly(names),
        ),
    )
    return wrapped


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
