"""Masked autoencoder with the settings that suit radiographs.

Xiao et al., "Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification",
WACV 2023, arXiv 2210.12843; the method is that of He et al., CVPR 2022, arXiv 2111.06377.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.objectives.pretraining import Array, Capabilities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="Xiao et al., WACV 2023, arXiv 2210.12843",
    enters=("vit",),
    gaps={
        "convolutional networks": "they have no patches that could be left out; SparK is for them",
        "windowed transformers": "a block of Swin needs all patches of its windows",
        "timm": "its networks give a pooled feature, and no tokens to compare the parts with",
    },
)


class DecoderConfig(BaseConfig):
    """Of what fills in the hidden patches; it is thrown away after training."""

    dim: int = Field(512, ge=12, description="Width of a token.")
    depth: int = Field(2, ge=1, description="Blocks: 2 for ViT-S, 8 for ViT-B.")
    heads: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> DecoderConfig:
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {self.dim}")
        return self


class AutoencoderConfig(BaseConfig):
    """What is hidden of a picture, and what fills it in."""

    mask_ratio: float = Field(0.9, gt=0, lt=1, description="Share of the patches that is hidden.")
    norm_pix: bool = Field(False, description="Each patch is aimed at with mean 0 and spread 1.")
    positions: Literal["sin_cos", "own"] = Field(
        "sin_cos",
        description="sin_cos: fixed ones are put into the network. own: its own stay and are "
        "trained, to go on from a pre-trained network.",
    )
    decoder: DecoderConfig = DecoderConfig()


class Config(AutoencoderConfig):
    """Hide most patches, and learn to fill them in."""

    method: Literal["mae"] = Field("mae", description="This method.")


def build(backbone: Backbone, config: Config, seed: int) -> nn.Module:
    """A masked autoencoder around the network of `backbone`.

    Raises:
        BackboneError: If the network cannot be run on some of its patches.
        ConfigError: If so few patches are no patch, or all.
    """
    from galenic.objectives.pretraining._autoencoder import MaskedAutoencoder, enter

    return MaskedAutoencoder(backbone.inputs.key, enter(backbone, config), config, seed)


def pictures(objective: nn.Module, batch: Mapping[str, Tensor]) -> Array:
    """Input, visible patches, and the input with its hidden patches filled in [B, 3, C, ...]."""
    from galenic.objectives.pretraining._autoencoder import MaskedAutoencoder

    assert isinstance(objective, MaskedAutoencoder)
    shown: Array = objective.pictures(**batch).float().cpu().numpy()
    return np.ascontiguousarray(shown)
