"""Networks of a federation: what a client trains, what it sends, what all of them come to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from galenic import tuners
from galenic.core.config import Config as BaseConfig
from galenic.core.errors import ConfigError
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.federation.aggregate import Aggregate, truncated
from galenic.models.backbone import Backbone
from galenic.objectives.classification import Classifier
from galenic.pipeline.encoder import PooledEncoder
from galenic.tasks._federate_config import Config
from galenic.tuners import lora

# Before the names of the head's parameters, beside those of the tuner.
HEAD = "head."


def head_of(objective: Classifier) -> dict[str, Tensor]:
    """Copies of the head's parameters, as they are sent."""
    named = objective.head.named_parameters(prefix=HEAD.removesuffix("."))
    return {name: value.detach().clone() for name, value in named}


def sent(objective: Classifier) -> dict[str, Tensor]:
    """All that a client sends of its network: what the tuner trained, and the head."""
    return {**tuners.state(backbone_of(objective)), **head_of(objective)}


def tuner_of(config: Config, rank: int, scale: float) -> BaseConfig:
    """The tuner of a client; a LoRA of `rank` whose product is scaled by `scale`."""
    if config.method == "full":
        return tuners.parse_tuner({"method": "full"})
    return tuners.parse_tuner({**config.tuner, "rank": rank, "alpha": rank * scale})


def started(
    pristine: Classifier, start: Aggregate, config: Config, rank: int, seed: int
) -> Classifier:
    """What one client trains in one round.

    With flora the aggregate is folded into the weights, and a fresh LoRA stands on them; with the
    other methods training goes on from the averaged tensors.

    Args:
        pristine: The untouched network and a fresh head.
        start: What all clients begin with.
        config: Of the task.
        rank: Of this client.
        seed: Of the fresh factors.
    """
    objective, factors = _copied(pristine, start)
    backbone = backbone_of(objective)
    stacked = config.method == "flora"
    if factors and stacked:
        lora.hold(backbone, factors, start.rank, start.rank * start.scale)
        network: Any = backbone.network
        backbone.network = network.merge_and_unload()
    seed_everything(seed)
    tuners.attach(backbone, tuner_of(config, rank, config.alpha_over_r))
    if factors and not stacked:
        tuners.put(backbone, truncated(factors, rank))
    objective.encoder = PooledEncoder(backbone)
    return objective


def held(
    pristine: Classifier, start: Aggregate, config: Config
) -> tuple[Classifier, BaseConfig | None]:
    """The network that all have together, what was learned apart from the weights where it can be.

    Returns:
        The objective, and the tuner that is attached to it; None where nothing was learned.
    """
    objective, learned = _copied(pristine, start)
    backbone = backbone_of(objective)
    if not learned:
        return objective, None
    tuner = put(backbone, Aggregate(learned, start.rank, start.scale), config)
    objective.encoder = PooledEncoder(backbone)
    return objective, tuner


def put(backbone: Backbone, learned: Aggregate, config: Config) -> BaseConfig:
    """Put what all have together into a network that no tuner has changed; gives its tuner.

    Args:
        backbone: The untouched network.
        learned: Tensors of the tuner, without the head.
        config: Of the task.
    """
    tuner = tuner_of(config, learned.rank, learned.scale)
    if config.method == "full":
        tuners.attach(backbone, tuner)
        tuners.put(backbone, learned.state)
    else:
        lora.hold(backbone, learned.state, learned.rank, learned.rank * learned.scale)
    return tuner


def saved(run: Run) -> Aggregate:
    """What all have together at the end of a run, without the head."""
    card = run.read_json("adapter/tuner.json")["config"]
    rank = int(card.get("rank", 0))
    scale = float(card["alpha"]) / rank if rank else 1.0
    return Aggregate(tuners.read(run.path / "adapter"), rank, scale)


def require_one(config: Config, run: Run) -> None:
    """Check that a run has one network.

    Raises:
        ConfigError: If nothing was shared: then each client has its own.
    """
    if config.method == "local":
        raise ConfigError(
            "A run of method=local has as many networks as clients, and not one.",
            where=str(run.path),
            next_step="Load one of the adapters under clients/ with peft.",
        )


def require_still(objective: Classifier) -> None:
    """Check that all that is sent is trained: noise makes no sense in statistics that move.

    Raises:
        ConfigError: If statistics of batches would be sent; names them.
    """
    network = backbone_of(objective).network
    learned = dict(objective.head.named_parameters(prefix=HEAD.removesuffix(".")))
    learned |= dict(network.named_parameters())
    moving = [name for name in sent(objective) if name not in learned]
    if moving:
        raise ConfigError(
            f"{len(moving)} statistics of batches would be clipped and noised with the weights: "
            f"{', '.join(moving[:3])}, ...",
            where="privacy",
            expected="a network without batch norm",
            next_step="Choose another backbone, or method=fedit.",
        )


def backbone_of(objective: Classifier) -> Backbone:
    """The backbone under a head."""
    backbone: Any = objective.encoder.backbone
    assert isinstance(backbone, Backbone)
    return backbone


def _copied(pristine: Classifier, start: Aggregate) -> tuple[Classifier, dict[str, Tensor]]:
    """A copy with the head of `start`, and the other tensors of `start`."""
    tokenizer = backbone_of(pristine).tokenizer
    objective = copy.deepcopy(pristine, {id(tokenizer): tokenizer})
    parameters: Mapping[str, Tensor] = dict(objective.head.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(start.state[HEAD + name])
    return objective, {n: t for n, t in start.state.items() if not n.startswith(HEAD)}
