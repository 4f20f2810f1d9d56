"""UrFound: fill in a finer picture than was seen, and the masked words of what experts say of it.

Yu et al., "UrFound: Towards Universal Retinal Foundation Models via Knowledge-Guided Masked
Modeling", MICCAI 2024, arXiv 2408.05618.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.errors import BackboneError
from galenic.objectives.pretraining import Capabilities
from galenic.objectives.pretraining.mae import AutoencoderConfig, DecoderConfig, pictures

if TYPE_CHECKING:
    from torch import nn

    from galenic.models.backbone import Backbone

__all__ = ["CAPABILITIES", "Config", "build", "pictures", "scale", "tokenizer"]

CAPABILITIES = Capabilities(
    paper="Yu et al., MICCAI 2024, arXiv 2408.05618",
    enters=("vit",),
    gaps={
        "convolutional networks": "they have no patches that could be left out; SparK is for them",
        "windowed transformers": "a block of Swin needs all patches of its windows",
        "networks of volumes": "a target of twice the side is made for pictures and slices",
    },
)


class TextConfig(BaseConfig):
    """A BERT of its own that names the masked words, from scratch."""

    tokenizer: str = Field("builtin:minilm", description="A text network, for its tokenizer.")
    layers: int = Field(6, ge=1)
    width: int = Field(384, ge=1, description="Of a token; its feed-forward is four times that.")
    heads: int = Field(6, ge=1)
    max_tokens: int = Field(100, ge=4, description="Longer captions are cut.")
    mask: float = Field(0.5, gt=0, le=1, description="Chance that a whole word is masked.")
    loss_on: Literal["masked", "all"] = Field(
        "masked",
        description="all: unmasked words count too, as in the published code, and can be copied.",
    )

    @model_validator(mode="after")
    def _fits(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {self.width}")
        return self


class Config(AutoencoderConfig):
    """Hide most of a picture and half of what is said of it; learn to tell both."""

    method: Literal["urfound"] = Field("urfound", description="This method.")
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="Share of the patches that is hidden.")
    norm_pix: bool = Field(True, description="Each patch is aimed at with mean 0 and spread 1.")
    decoder: DecoderConfig = DecoderConfig(dim=768, depth=4, heads=6)
    target_scale: int = Field(
        2, ge=1, description="Sides of what is filled in, in those of what the network sees."
    )
    text: TextConfig | None = Field(TextConfig(), description="None learns from pictures alone.")


def scale(config: Config) -> int:
    """Sides of the pixels of a batch, in those of the network."""
    return config.target_scale


def tokenizer(config: Config) -> Any | None:
    """What cuts the captions; None where none are read."""
    if config.text is None:
        return None
    from galenic.models.tokenizers import open_tokenizer

    return open_tokenizer(config.text.tokenizer, config.text.max_tokens)


def build(backbone: Backbone, config: Config, seed: int) -> nn.Module:
    """The joint objective around the network of `backbone`.

    Raises:
        BackboneError: If the network cannot be run on some of its patches, or reads volumes; or
            if the tokenizer cannot be had.
        ConfigError: If so few patches are no patch, or all.
    """
    from galenic.objectives.pretraining._autoencoder import MaskedAutoencoder, enter
    from galenic.objectives.pretraining.urfound.objective import KnowledgeMasked

    words = tokenizer(config)
    encoder = enter(backbone, config)
    if len(encoder.patch) != 2:
        raise BackboneError(
            f"'{backbone.spec}' reads {backbone.inputs.form}s.",
            expected="a network of pictures; it may read a volume slice by slice",
            next_step="pretraining.method=mae",
        )
    key = backbone.inputs.key
    if words is None:
        return MaskedAutoencoder(key, encoder, config, seed, config.target_scale)
    return KnowledgeMasked(key, encoder, config, seed, words)
