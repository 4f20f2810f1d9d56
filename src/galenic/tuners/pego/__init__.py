"""PEGO: a group of low-rank updates a projection, kept apart from the weight and each other.

Source: Hu, Zhang, Qi, Zhou, Wang, Li, "Learn to Preserve and Diversify: Parameter-Efficient
Group with Orthogonal Regularization for Domain Generalization", ECCV 2024, arXiv 2407.15085.

    model = peft.get_peft_model(network, PEGOConfig())
    loss = task_loss + model.base_model.orthogonal_loss()

works on any network, without the rest of galenic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities, Hooks
from galenic.tuners._lazy import lazily

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone
    from galenic.tuners.pego.config import PEGOConfig
    from galenic.tuners.pego.model import PEGOModel

__all__ = ["CAPABILITIES", "Config", "PEGOConfig", "PEGOModel", "attach", "hooks"]

CAPABILITIES = Capabilities(
    paper="Hu et al., PEGO, ECCV 2024, arXiv 2407.15085",
    mergeable=True,
    exact_unmerge=True,
    identity_at_start=True,
    enters=("vit", "swin", "bert"),
    gaps={
        "convnext": "no attention projections; name layers in target_modules",
        "orthogonality": "a weight of full rank has no null space: the preserving term shrinks "
        "updates along the weight's strong directions, it is not a constraint that can be met",
        "grouped-query attention": "a fused layer whose three parts differ in width is refused",
    },
)


class Config(BaseConfig):
    """Train groups of low-rank updates with two orthogonality terms."""

    method: Literal["pego"] = Field("pego", description="This tuner.")
    rank: int = Field(4, ge=1, description="Rank of each update.")
    groups: int = Field(4, ge=1, description="Updates a projection.")
    target_modules: list[str] | str = Field(
        "qv", description="qv (query and value, as in the paper), a list of names, or a pattern."
    )
    weight: float = Field(1e-3, ge=0, description="Lambda: weight of the orthogonality terms.")
    norm: Literal["l1_sum", "l1_mean", "fro2"] = Field(
        "l1_sum",
        description="Of each matrix: sum of absolute entries (paper), their mean, or of squares. "
        "The sum grows with the square of the width; 1e-3 was set at width 768.",
    )
    preserve: bool = Field(True, description="Keep updates apart from the weight.")
    diversify: bool = Field(True, description="Keep the updates of a group apart.")
    last_blocks: int | None = Field(
        None, ge=1, description="Only the last so many blocks; the rest is a frozen prefix."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Wrap `backbone.network` in PEGO.

    Raises:
        BackboneError: If no layer matches.
        ConfigError: If rank times groups is more than a layer has room for.
    """
    from peft import get_peft_model

    from galenic.tuners._network import freeze
    from galenic.tuners.pego.config import PEGOConfig
    from galenic.tuners.pego.model import PEGOModel as _registers  # noqa: F401
    from galenic.tuners.pego.placement import place

    settings = PEGOConfig(**config.model_dump(exclude={"method"}))
    settings.placed = place(backbone.network, settings, run=lambda: backbone(**backbone.example()))
    freeze(backbone.network)
    backbone.network = get_peft_model(backbone.network, settings)


def hooks(backbone: Backbone, config: Config) -> Hooks:
    """The orthogonality terms, unless their weight is zero."""
    if config.weight == 0 or not (config.preserve or config.diversify):
        return Hooks()
    model: Any = backbone.network
    return Hooks(penalty=model.base_model.orthogonal_loss)


__getattr__ = lazily(__name__, PEGOConfig="model", PEGOModel="model")
