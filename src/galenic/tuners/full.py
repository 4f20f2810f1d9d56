"""Full fine-tuning, from all blocks down to the last few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.core.errors import ConfigError
from galenic.tuners import Capabilities, Hooks, Stage
from galenic.tuners._phase import Phase

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
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Stochastic depth: chance that the branches of the last transformer block are "
        "left out in training; less in blocks before it, in a straight line.",
    )
    head_first: Phase | None = Field(
        None,
        description="Train the head alone before, for these epochs and at this rate; the schedule is "
        "then that of the backbone and the head together.",
    )


def attach(backbone: Backbone, config: Config) -> None:
    """Let everything in `backbone.network` train, but the frozen prefix.

    Raises:
        ConfigError: If `frozen_blocks` is more than the network has.
        BackboneError: If there are no blocks to count, or to leave out.
    """
    from galenic.tuners._drop_path import place_drop_path
    from galenic.tuners._network import blocks, freeze, last, release

    network = backbone.network
    place_drop_path(network, config.drop_path)
    if config.frozen_blocks == 0:
        network.requires_grad_(True)
        release(network.modules())
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
            release([owner])


def hooks(backbone: Backbone, config: Config) -> Hooks:
    """One stage, or the head alone and then what :func:`attach` lets train."""
    from galenic.tuners._network import freeze

    if config.head_first is None:
        return Hooks()
    return Hooks(
        (
            Stage("head", lambda: freeze(backbone.network), config.head_first.keys()),
            Stage("train", lambda: attach(backbone, config)),
        )
    )
