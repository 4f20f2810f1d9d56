"""MoCo v2: tell a view of a sample from a queue of others, by a slowly moving encoder.

Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020, arXiv 2003.04297; the
method is that of He et al., CVPR 2020, arXiv 1911.05722.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.objectives.pretraining import Capabilities

if TYPE_CHECKING:
    from torch import nn

    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="Chen et al., 2020, arXiv 2003.04297",
    enters=("any",),
    gaps={
        "shuffled batch norm": "it moves samples between devices; on one it would change nothing",
        "several devices": "each compares with the queue of the first",
    },
)


class Config(BaseConfig):
    """Recognise the other view of a sample among those that went before."""

    method: Literal["moco"] = Field("moco", description="This method.")
    dim: int = Field(128, ge=1, description="Width of what is compared.")
    queue: int = Field(65536, ge=1, description="Samples that are compared with.")
    momentum: float = Field(0.999, ge=0, lt=1, description="Share that the slow encoder keeps.")
    temperature: float = Field(0.2, gt=0)


def build(backbone: Backbone, config: Config, seed: int) -> nn.Module:
    """MoCo around the network of `backbone`."""
    from galenic.objectives.pretraining._momentum import MomentumContrast

    return MomentumContrast(backbone, config, seed)


def views(config: Config) -> int:
    """A query and its key."""
    return 2
