"""SwAV: a view of a sample tells which prototypes another view of it was assigned to.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
NeurIPS 2020, arXiv 2006.09882.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.data.crop import Shares
from galenic.objectives.pretraining import Capabilities, LocalViews

if TYPE_CHECKING:
    from torch import nn

    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="Caron et al., NeurIPS 2020, arXiv 2006.09882",
    enters=("any",),
    gaps={"several devices": "each balances the samples of its own batch"},
)


class LocalConfig(BaseConfig):
    """Small crops that foretell the codes of the whole views, and have none of their own."""

    count: int = Field(6, ge=1, description="Of each sample.")
    crop: Shares = Field((0.05, 0.14), description="Share of the area that one keeps.")
    share: float = Field(
        0.43, gt=0, le=1, description="Its sides, in those of the network: 96 pixels of 224."
    )


class Config(BaseConfig):
    """Foretell the cluster of one view from another, with all clusters of one size."""

    method: Literal["swav"] = Field("swav", description="This method.")
    prototypes: int = Field(3000, ge=2, description="Clusters.")
    dim: int = Field(128, ge=1, description="Width of what is compared.")
    hidden: int = Field(2048, ge=1, description="Width inside the projection.")
    temperature: float = Field(0.1, gt=0)
    epsilon: float = Field(0.05, gt=0, description="Entropy of the codes: smaller is sharper.")
    iterations: int = Field(3, ge=1, description="Of Sinkhorn and Knopp.")
    freeze_epochs: int = Field(1, ge=0, description="First epochs in which no prototype moves.")
    local: LocalConfig | None = Field(None, description="{} for six small crops; None for none.")
    queue: int = Field(
        0,
        ge=0,
        description="Earlier samples that the codes are balanced with, where a batch has fewer "
        "samples than there are prototypes; 0 for none.",
    )
    queue_epochs: int = Field(15, ge=0, description="First epochs without the queue.")


def build(backbone: Backbone, config: Config, seed: int) -> nn.Module:
    """SwAV around the network of `backbone`.

    Raises:
        BackboneError: If the network cannot read the small crops.
    """
    from galenic.objectives.pretraining._swapping import SwappedAssignments

    return SwappedAssignments(backbone, config, seed)


def views(config: Config) -> int:
    """Those whose codes are swapped."""
    return 2


def local_views(config: Config) -> LocalViews | None:
    """The small crops."""
    asked = config.local
    return None if asked is None else LocalViews(asked.count, asked.crop, asked.share)


def after_step(objective: nn.Module, step: int, steps: int) -> None:
    """Prototypes go back to the unit sphere."""
    from galenic.objectives.pretraining._swapping import SwappedAssignments

    assert isinstance(objective, SwappedAssignments)
    objective.normalise()
