"""Full fine-tuning, from all blocks down to the last few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.core.errors import ConfigError
from galenic.tuners import Capabilities

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone

CAPABILITIES = Capabilities(
    paper="",
    mergeable=False,
    exact_unmerge=False,
    identity_at_start=True,
    enters=("any",),
    gaps={"merge": "the backbone's own tensors are trained: there is nothing apart to merge"},
)


class Config(BaseConfig):
    """Train the backbone's own tensors."""

    method: Literal["full"] = Field("full", description="This tuner.")
    frozen_blocks: int = Field(
        0, ge=0, description="The embeddings and this many leading blocks stay frozen."
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Let everything in `backbone.network` train, but the frozen prefix.

    Raises:
        ConfigError: If `frozen_blocks` is more than the network has.
        BackboneError: If there are no blocks to count.
    """
    from galenic.tuners._network import blocks, freeze, last

    network = backbone.network
    if config.frozen_blocks == 0:
        network.requires_grad_(True)
        return
    every = blocks(network)
    if config.frozen_blocks >= len(every):
        raise ConfigError(
            f"frozen_blocks is {config.frozen_blocks}, but {type(network).__name__} has "
            f"{len(every)} blocks.",
            where="tuner.frozen_blocks",
            expected=f"0 to {len(every) - 1}",
            next_step="To train only the head: method: none.",
        )
    free = last(network, len(every) - config.frozen_blocks)
    freeze(network)
    for name, parameter in network.named_parameters():
        owner = network.get_submodule(name.rpartition(".")[0])
        if name.rpartition(".")[0] in free:
            parameter.requires_grad_(True)
            owner._galenic_held = False  # type: ignore[assignment]
