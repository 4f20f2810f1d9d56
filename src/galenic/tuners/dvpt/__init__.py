"""DVPT: prompts that change with the image, from cross-attention inside a shared bottleneck.

Source: He et al., "DVPT: Dynamic Visual Prompt Tuning of Large Pre-trained Models for Medical
Image Analysis", 2023, arXiv 2307.09787.

    peft.get_peft_model(network, DVPTConfig())

works on any transformer, without the rest of galenic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.core.errors import ConfigError
from galenic.tuners import Capabilities
from galenic.tuners._lazy import lazily

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone
    from galenic.tuners.dvpt.config import DVPTConfig
    from galenic.tuners.dvpt.model import DVPTModel

__all__ = ["CAPABILITIES", "Config", "DVPTConfig", "DVPTModel", "attach"]

CAPABILITIES = Capabilities(
    paper="He et al., DVPT, 2023, arXiv 2307.09787",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=False,
    enters=("vit", "swin", "bert"),
    gaps={
        "merge": "what is added depends on the input: no weight holds it",
        "identity_at_start": "prompt tokens change the first output; repo (in stages) starts exact",
        "cnn": "no transformer blocks to put prompts into",
        "convnext": "no transformer blocks to put prompts into",
        "variant: repo without pre-norm": "its prompts are added before the feed-forward's norm",
    },
)


class Config(BaseConfig):
    """Train prompts, and a bottleneck that a few neighbouring blocks share."""

    method: Literal["dvpt"] = Field("dvpt", description="This tuner.")
    variant: Literal["auto", "paper", "repo", "repo-vit"] = Field(
        "auto",
        description="paper: dynamic prompts as the abstract has them; repo: as the authors' "
        "Swin and SegFormer code; repo-vit: as their ViT code, where the prompts are static; "
        "auto: paper, and repo for networks in stages.",
    )
    num_prompts: int | None = Field(
        None, ge=1, description="Prompts; None: 50, and 10 for networks in stages."
    )
    latent_dim: int | None = Field(
        None, ge=1, description="Width of the bottleneck; None: 20, and 10 in stages."
    )
    share_every: int | None = Field(
        None, ge=1, description="Neighbouring blocks with one bottleneck; None: 3, 2 in stages."
    )
    pool: Literal["auto", "prompts+cls", "cls"] = Field(
        "auto",
        description="What stands in the class token's place at the end; auto: the mean of it "
        "and the prompts, where the backbone pools by class token.",
    )
    gate_init: float = Field(0.0, description="Start of every gate; 0 is silent.")
    gate_prompts: bool = Field(
        True, description="Gate what repo adds to the first tokens; the Swin code does not."
    )
    attn_scale: Literal["rsqrt"] | float = Field(
        "rsqrt", description="Of the prompts' attention; rsqrt: one over the root of its width."
    )
    last_blocks: int | None = Field(
        None, ge=1, description="Only the last so many blocks; the rest is a frozen prefix."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Put the prompts and bottlenecks into `backbone.network`.

    Raises:
        BackboneError: If the variant cannot enter the network.
        ConfigError: If the bottleneck does not fit its width, or nothing reads the pooled token.
    """
    from peft import get_peft_model

    from galenic.tuners._network import freeze
    from galenic.tuners.dvpt.config import DVPTConfig
    from galenic.tuners.dvpt.model import DVPTModel as _registers  # noqa: F401
    from galenic.tuners.dvpt.placement import place

    settings = config.model_dump(exclude={"method"})
    if config.pool == "auto":
        settings["pool"] = "prompts+cls" if backbone.pool == "cls" else "cls"
    elif config.pool == "prompts+cls" and backbone.pool != "cls":
        raise ConfigError(
            f"pool is prompts+cls, but '{backbone.spec}' pools by {backbone.pool}.",
            where="tuner.pool",
            expected="a backbone whose feature is its class token",
            next_step="Set pool=cls (of the task), or leave tuner.pool at auto.",
        )
    peft_config = DVPTConfig(**settings)
    place(backbone.network, peft_config, run=lambda: backbone(**backbone.example()))
    freeze(backbone.network)
    backbone.network = get_peft_model(backbone.network, peft_config)


__getattr__ = lazily(__name__, DVPTConfig="model", DVPTModel="model")
