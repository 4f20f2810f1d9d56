"""UniPT: a small network that reads all layers of a frozen one in parallel.

Source: Diao, Wan, Zhang, Jia, Lu, Chen, "UniPT: Universal Parallel Tuning for Transfer
Learning with Efficient Parameter and Memory", CVPR 2024, arXiv 2308.14316.

    peft.get_peft_model(network, UniPTConfig())

works on any transformers network of tokens or maps, without the rest of galenic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities
from galenic.tuners._lazy import lazily

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone
    from galenic.tuners.unipt.config import UniPTConfig
    from galenic.tuners.unipt.model import UniPTModel

__all__ = ["CAPABILITIES", "Config", "UniPTConfig", "UniPTModel", "attach"]

CAPABILITIES = Capabilities(
    paper="Diao et al., UniPT, CVPR 2024, arXiv 2308.14316",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=False,
    enters=("vit", "swin", "bert", "convnext", "cnn"),
    gaps={
        "merge": "the side network reads the states between the layers, and stays at inference",
        "identity_at_start": "new features from the start; form: pooled with zero_init_up is exact",
        "encoder-decoder": "one chain of blocks is read; the paper's cross projection is not built",
        "volumes": "states of three-dimensional networks are no maps [B, d, h, w]; refused",
        "out_dim": "features keep the backbone's width here; UniPTConfig has it for peft alone",
    },
    reads_states=True,
)


class Config(BaseConfig):
    """Train a network beside the frozen backbone."""

    method: Literal["unipt"] = Field("unipt", description="This tuner.")
    reduction_factor: int = Field(
        2, ge=1, description="The side network is the backbone's width divided by this wide."
    )
    layers: Literal["auto", "all", "stages"] | list[int] = Field(
        "auto",
        description="auto: all of tokens, the last of each size of maps; or indices, 0 before the "
        "first block, i after block i.",
    )
    form: Literal["auto", "tokens", "grid", "pooled"] = Field(
        "auto",
        description="tokens, grid (maps), or pooled (a residual to the frozen pooled feature).",
    )
    proj: Literal["linear", "mlp"] = Field(
        "linear", description="One or two layers between the merged layers and the sum."
    )
    eps: float = Field(1e-6, gt=0, description="Smallest sum that a row is divided by.")
    zero_init_up: bool = Field(
        False, description="Start the last layer at zero: exact at the start in form pooled."
    )
    chunk_size: int | None = Field(
        None, ge=1, description="Queries at a time; None as many as memory is small for."
    )
    token: Literal["first", "last"] = Field(
        "first", description="Token of each layer that form pooled adds."
    )
    cache_features: bool = Field(
        True, description="Whether the frozen states may be computed once and kept on disk."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Set UniPT beside `backbone.network`; the backbone's features become the side network's.

    Raises:
        BackboneError: If the hidden states cannot be read.
        ConfigError: If `layers` names fewer than two states, or unknown ones.
    """
    from galenic.tuners import _side
    from galenic.tuners.unipt.config import UniPTConfig
    from galenic.tuners.unipt.model import UniPTModel as _registers  # noqa: F401

    settings = UniPTConfig(
        **config.model_dump(exclude={"method"}),
        pool=backbone.pool if backbone.pool != "auto" else "mean",
        prefix_tokens=backbone.prefix_tokens,
    )
    _side.attach(backbone, settings, "unipt")


__getattr__ = lazily(__name__, UniPTConfig="model", UniPTModel="model")
