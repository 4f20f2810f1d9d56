"""SaRA: train the smallest weights of a network, kept at low rank.

Source: Hu et al., "SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse
Low-Rank Adaptation", ICLR 2025, arXiv 2409.06633.

    model = peft.get_peft_model(network, SaRAConfig())
    loss = task_loss + model.base_model.rank_loss()
    model.base_model.reselect()          # once, half way

works on any network, without the rest of galenic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities, Hooks, Stage
from galenic.tuners._lazy import lazily

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone
    from galenic.tuners.sara.config import SaRAConfig
    from galenic.tuners.sara.model import SaRAModel

__all__ = ["CAPABILITIES", "Config", "SaRAConfig", "SaRAModel", "attach", "hooks"]

CAPABILITIES = Capabilities(
    paper="Hu et al., SaRA, ICLR 2025, arXiv 2409.06633",
    mergeable=True,
    exact_unmerge=True,
    identity_at_start=True,
    enters=("vit", "swin", "bert", "convnext", "cnn"),
    gaps={
        "several active adapters": "values replace weights, so one adapter is active at a time",
        "quantised weights": "an integer has no small values to train; such tensors are left out",
        "a tensor that no module reads when it is called": "its values get no gradient",
    },
)


class Config(BaseConfig):
    """Train the weights of smallest magnitude."""

    method: Literal["sara"] = Field("sara", description="This tuner.")
    threshold: float | None = Field(
        None,
        gt=0,
        description="Weights of smaller magnitude train; 2e-3, as in the paper, where neither "
        "this nor proportion is given.",
    )
    proportion: float | None = Field(
        None, gt=0, le=1, description="Share of the weights that trains, instead of a threshold."
    )
    scope: Literal["global", "per_tensor"] = Field(
        "global", description="Whether the proportion is of all weights together or of each tensor."
    )
    select: Literal["smallest", "largest", "random"] = Field(
        "smallest", description="The paper's choice, or what it is compared with."
    )
    target: str = Field("all", description="all (outside heads), or a pattern of full names.")
    last_blocks: int | None = Field(
        None, ge=1, description="Only the last so many blocks; the rest is a frozen prefix."
    )
    lambda_rank: float = Field(5e-4, ge=0, description="Weight of the nuclear norm.")
    rank_sample: Literal["one", "all"] = Field(
        "one", description="one random matrix a step, as the authors' code, or all (slow)."
    )
    min_rank_dim: int = Field(
        64, ge=1, description="Matrices with both sides above this have a nuclear norm."
    )
    penalise: Literal["values", "delta"] = Field(
        "values", description="Norm of the trained values (paper), or of their change."
    )
    progressive_step: float | None = Field(
        0.5,
        gt=0,
        description="Step at which weights that grew past the threshold are frozen: a share of "
        "the steps if below 1, else a step; None for never.",
    )
    lr_rule: Literal["paper"] | None = Field(
        None, description="paper: the rate is 1e-3 * exp(-350 * threshold), whatever the schedule."
    )

    @model_validator(mode="after")
    def _one_measure(self) -> Config:
        if self.threshold is not None and self.proportion is not None:
            raise ValueError("give threshold or proportion, not both")
        if self.select != "smallest" and self.proportion is None:
            raise ValueError(f"select: {self.select} needs a proportion")
        if self.select != "smallest" and self.lr_rule is not None:
            raise ValueError("lr_rule goes by the threshold, which only select: smallest has")
        return self


def attach(backbone: Backbone, config: Config) -> None:
    """Wrap `backbone.network` in SaRA.

    Raises:
        BackboneError: If no weight is chosen, or no tensor matches.
    """
    from peft import get_peft_model

    from galenic.tuners._network import freeze
    from galenic.tuners.sara.config import SaRAConfig
    from galenic.tuners.sara.model import SaRAModel as _registers  # noqa: F401
    from galenic.tuners.sara.placement import choose

    network = backbone.network
    settings = SaRAConfig(**config.model_dump(exclude={"method", "progressive_step", "lr_rule"}))
    choose(network, settings)
    freeze(network)
    backbone.network = get_peft_model(network, settings)


def hooks(backbone: Backbone, config: Config) -> Hooks:
    """The nuclear norm, the freezing of what grew, and the paper's rate."""
    import math

    model: Any = backbone.network
    tuner = model.base_model

    def after_step(done: int, steps: int) -> None:
        wish = config.progressive_step or 0
        if done == (round(wish * steps) if wish < 1 else int(wish)):
            tuner.reselect()
        tuner.settle()

    schedule = {}
    if config.lr_rule == "paper":
        schedule["lr"] = 1e-3 * math.exp(-350 * tuner.threshold)
    return Hooks(
        stages=(Stage(schedule=schedule),),
        penalty=tuner.rank_loss if config.lambda_rank else None,
        after_step=None if config.progressive_step is None else after_step,
    )


__getattr__ = lazily(__name__, SaRAConfig="model", SaRAModel="model")
