"""Learn the features of a trained network: its pooled one, and its map of places.

Ranzinger et al., "AM-RADIO: Agglomerative Vision Foundation Model", CVPR 2024, arXiv 2312.06709,
section 3, with one teacher.
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
    paper="Ranzinger et al., CVPR 2024, arXiv 2312.06709",
    enters=("vit", "convolutional"),
    gaps={
        "networks of volumes and signals": "student and teacher are asked about pictures; of a "
        "volume, about its slices",
        "several teachers": "one is asked",
    },
)


class Config(BaseConfig):
    """Agree with the features of a teacher that stays as it is."""

    method: Literal["feature_distillation"] = Field(
        "feature_distillation", description="This method."
    )
    teacher: str = Field(
        "builtin:efficientnet-lite0",
        description="A network of pictures, asked about the same pixels as the student.",
    )
    places: float = Field(1.0, ge=0, description="Weight of the map; 0: the pooled feature alone.")


def build(backbone: Backbone, config: Config, seed: int) -> nn.Module:
    """The network of `backbone` beside a frozen teacher.

    Raises:
        BackboneError: If one of both reads no pictures, or the teacher others than the student.
    """
    from galenic.objectives.pretraining._features import FeatureDistillation

    return FeatureDistillation(backbone, config, seed)
