"""Soft prompts: the vectors of a cloze template train, the language model stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.tuners import Capabilities

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="Taylor et al., 2022, arXiv 2205.05535",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=True,
    enters=("cloze",),
    gaps={
        "merge": "prompts are inputs, not weights",
        "any network": "it enters what the task `cloze` opens: a masked language model behind a "
        "template",
    },
)


class Config(BaseConfig):
    """Train the soft vectors of the template."""

    method: Literal["prompt"] = Field("prompt", description="This tuner.")


def attach(backbone: Backbone, config: Config) -> None:
    """Freeze all but the prompts of `backbone.network`.

    Raises:
        BackboneError: If the network stands behind no template.
    """
    from galenic.tuners._network import cannot_enter, freeze

    network = backbone.network
    if not hasattr(network, "prompts"):
        raise cannot_enter(
            network,
            "prompt",
            "a masked language model behind a template",
            "galenic run clinical-prompt-learning",
        )
    freeze(network)
    if network.prompts is not None:
        network.prompts.requires_grad_(True)
