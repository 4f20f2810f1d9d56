"""SparK: masked pre-training of convolutional networks, as the study of small CT sets uses it.

Wolf et al., Scientific Reports 13:20260, 2023, arXiv 2308.06534; the method is that of Tian et
al., ICLR 2023, arXiv 2301.03580.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.objectives.pretraining import Array, Capabilities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="Wolf et al., Scientific Reports 2023, arXiv 2308.06534",
    enters=("convolutional",),
    gaps={
        "transformers": "attention mixes all positions; mae is for them",
        "gradient checkpointing": "the mask is gone when a forward pass is repeated",
    },
)


class Config(BaseConfig):
    """Mask cells of the picture, keep the network blind to them, and paint them."""

    method: Literal["spark"] = Field("spark", description="This method.")
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="Share of the cells that is masked.")
    cell: int | None = Field(
        None, ge=1, description="Side of a cell in pixels; by default the network's stride."
    )
    decoder_width: int = Field(
        768, ge=2, description="Channels before the first block of the decoder, which halve."
    )
    sparse: bool = Field(
        True, description="false, an ablation: masked cells are zero, and the network is dense."
    )


def build(backbone: Backbone, config: Config, seed: int) -> nn.Module:
    """SparK around the network of `backbone`.

    Raises:
        BackboneError: If the network is not convolutional, or calls what has no sparse form.
        ConfigError: If cells or widths do not fit it.
    """
    from galenic.objectives.pretraining.spark.objective import Spark

    return Spark(backbone, config, seed)


def pictures(objective: nn.Module, batch: Mapping[str, Tensor]) -> Array:
    """Input, visible cells, and the input with its masked cells painted [B, 3, C, ...]."""
    from galenic.objectives.pretraining.spark.objective import Spark

    assert isinstance(objective, Spark)
    shown: Array = objective.pictures(**batch).float().cpu().numpy()
    return shown
