"""SSF: scale and shift the features after every operator of a frozen backbone.

Source: Lian, Zhou, Feng, Wang, "Scaling & Shifting Your Features: A New Baseline for Efficient
Model Tuning", NeurIPS 2022, arXiv 2210.08823.

    peft.get_peft_model(network, SSFConfig())

works on any network, without the rest of galenic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities
from galenic.tuners._lazy import lazily

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone
    from galenic.tuners.ssf.config import SSFConfig
    from galenic.tuners.ssf.model import SSFModel, merge_change

__all__ = ["CAPABILITIES", "Config", "SSFConfig", "SSFModel", "attach", "merge_change"]

CAPABILITIES = Capabilities(
    paper="Lian et al., SSF, NeurIPS 2022, arXiv 2210.08823",
    mergeable=True,
    exact_unmerge=True,
    identity_at_start=False,
    enters=("vit", "swin", "bert", "convnext", "cnn"),
    gaps={
        "identity_at_start": "the authors draw gamma ~ N(1, 0.02); init: identity starts exact",
        "nn.MultiheadAttention": "reads weights without calling a layer; refused with its name",
        "shift after an RMS norm": "the norm has no bias to fold into; merging leaves an addition",
    },
)


class Config(BaseConfig):
    """Train a scale and a shift after every operator."""

    method: Literal["ssf"] = Field("ssf", description="This tuner.")
    target_modules: list[str] | str = Field(
        "auto", description="auto (the paper's placement), a list of names, or a pattern."
    )
    exclude_modules: list[str] | str | None = Field(
        None, description="Names or pattern of modules that get no pair."
    )
    init: Literal["normal", "identity"] = Field(
        "normal", description="normal as the authors' code, or identity: exact at the start."
    )
    init_std: float = Field(0.02, ge=0, description="Standard deviation of init: normal.")
    last_blocks: int | None = Field(
        None, ge=1, description="Only the last so many blocks; the rest is a frozen prefix."
    )
    rebuild: Literal["auto", "never"] = Field(
        "auto", description="Save the output instead of the input for the backward pass."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Wrap `backbone.network` in SSF.

    Raises:
        BackboneError: If no operator of the network can carry a pair.
    """
    from peft import get_peft_model

    from galenic.tuners._network import freeze
    from galenic.tuners.ssf.config import SSFConfig
    from galenic.tuners.ssf.model import SSFModel as _registers  # noqa: F401
    from galenic.tuners.ssf.placement import place

    network = backbone.network
    settings = SSFConfig(**config.model_dump(exclude={"method"}))
    settings.placed = place(
        network,
        config.target_modules,
        exclude_modules=config.exclude_modules,
        last_blocks=config.last_blocks,
        run=lambda: backbone(**backbone.example()),
    )
    freeze(network)
    backbone.network = get_peft_model(network, settings)


__getattr__ = lazily(__name__, SSFConfig="model", SSFModel="model", merge_change="model")
