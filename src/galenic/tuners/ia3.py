"""IA3: scale keys, values and the inner feed-forward activations, by peft.

Source: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
In-Context Learning", NeurIPS 2022, arXiv 2205.05638.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="Liu et al., (IA)^3, NeurIPS 2022, arXiv 2205.05638",
    mergeable=True,
    exact_unmerge=False,
    identity_at_start=True,
    enters=("vit", "swin", "bert"),
    gaps={
        "exact_unmerge": "peft divides by the scale again, which rounds differently",
        "fused qkv": "one layer for q, k and v would scale the queries too",
        "cnn": "no keys and values",
        "convnext": "no keys and values",
    },
)


class Config(BaseConfig):
    """Train three scales a block."""

    method: Literal["ia3"] = Field("ia3", description="This tuner.")
    last_blocks: int | None = Field(
        None, ge=1, description="Only the last so many blocks; the rest is a frozen prefix."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Wrap `backbone.network` in peft's IA3.

    Raises:
        BackboneError: If the network has no separate key and value layers.
    """
    from peft import IA3Config, get_peft_model

    from galenic.tuners._calls import uncalled
    from galenic.tuners._network import (
        attention,
        cannot_enter,
        exactly,
        feedforward_down,
        freeze,
        last,
    )

    network = backbone.network
    blind = uncalled(network, lambda: backbone(**backbone.example()))
    scaled = [name for name in attention(network, ("k", "v")) if name not in blind]
    inner = [name for name in feedforward_down(network) if name not in blind]
    if config.last_blocks is not None:
        allowed = last(network, config.last_blocks)
        scaled = [name for name in scaled if name in allowed]
        inner = [name for name in inner if name in allowed]
    if not scaled:
        raise cannot_enter(
            network,
            "ia3",
            "separate layers for keys and values (k_proj and v_proj, key and value, ...)",
            "Use ssf or lora, which enter fused projections too.",
        )
    freeze(network)
    backbone.network = get_peft_model(
        network,
        IA3Config(
            target_modules=exactly(scaled + inner),
            feedforward_modules=exactly(inner) if inner else [],
        ),
    )
