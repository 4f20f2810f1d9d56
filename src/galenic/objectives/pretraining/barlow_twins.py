"""Barlow Twins: two views agree in each feature, and no feature repeats another.

Zbontar et al., ICML 2021, arXiv 2103.03230.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.objectives.pretraining import Array, Capabilities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="Zbontar et al., ICML 2021, arXiv 2103.03230",
    enters=("any",),
    gaps={"several devices": "each correlates the samples of its own batch"},
)


class Config(BaseConfig):
    """Make the correlation of two views the identity."""

    method: Literal["barlow_twins"] = Field("barlow_twins", description="This method.")
    dim: int = Field(8192, ge=2, description="Width of the three layers of the projector.")
    off_diagonal: float = Field(0.0051, gt=0, description="Weight of what features share.")


def build(backbone: Backbone, config: Config, seed: int) -> nn.Module:
    """Barlow Twins around the network of `backbone`."""
    from galenic.objectives.pretraining._twins import BarlowTwins

    return BarlowTwins(backbone, config, seed)


def views(config: Config) -> int:
    """The twins."""
    return 2


def together(config: Config, outputs: Mapping[str, Array]) -> float:
    """The loss of the correlation of all samples: it is one of a batch, and of no sample."""
    import torch

    from galenic.objectives.pretraining._twins import twins_loss

    first, second = torch.from_numpy(outputs["features"]).unbind(dim=1)
    return twins_loss(first, second, config.off_diagonal).item()
