"""What predicts stays, part by part: for the run that trains it, and for predictions of new stays."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from galenic.data.events.channels import Channels
from galenic.models.backbone import Backbone, open_backbone
from galenic.models.irregular import GridNetwork, Sizes, StayNetwork
from galenic.pipeline.config import DEFAULT_BACKBONES
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.stays import StayEncoder, Stays, note_inputs
from galenic.tasks._stays_config import Config
from galenic.tasks._stays_reading import Reading

NETWORK = "network.safetensors"


def open_text(config: Config) -> Backbone:
    """The text network, as it was before any training.

    Raises:
        BackboneError: If it cannot be opened, or reads no text.
    """
    return open_backbone(
        DEFAULT_BACKBONES["text"] if config.backbone == "auto" else config.backbone,
        modality="text",
        max_length=config.input.max_length,
        pool=config.pool,
    )


def samples(config: Config, found: Reading, text: Backbone | None) -> Stays:
    """What the network reads of each stay; notes as tokens of the text network, if there is one.

    Raises:
        DataError: If the text network has no tokenizer.
    """
    notes = found.notes
    read = None
    if text is not None and notes is not None and notes.texts:
        read = note_inputs(notes, text)
    return Stays(found.series, config.series.window_hours, steps(config), notes, read)


def steps(config: Config) -> int:
    """Regular times of a window."""
    return config.series.steps or max(1, round(config.series.window_hours))


def network(
    config: Config, channels: Mapping[str, Channels], text: Backbone | None = None
) -> nn.Module:
    """What reads all but the words, with fresh weights; trees have none.

    Args:
        config: Of the run.
        channels: By name of the modality.
        text: Reads the notes; None without them.
    """
    at = config.network
    if at.kind == "trees":
        return nn.Identity()
    counts = {name: len(one.names) for name, one in channels.items()}
    if at.kind == "gru":
        return GridNetwork(counts["series"], at.width)
    sizes = Sizes(steps(config), at.width, at.time_width, at.layers, at.heads, at.dropout)
    width = None if text is None else text.width
    return StayNetwork(counts, width, sizes=sizes, level=at.gate, fusion=at.fusion)


def encoder(config: Config, built: nn.Module, text: Backbone | None = None) -> nn.Module:
    """Features of stays; those below trees are computed ahead.

    Args:
        config: Of the run.
        built: Of :func:`network`.
        text: Reads the notes, once it is tuned; None without them.
    """
    if config.network.kind == "trees":
        return PooledEncoder(open_backbone("builtin:table"))
    return StayEncoder(built, None if text is None else PooledEncoder(text))
