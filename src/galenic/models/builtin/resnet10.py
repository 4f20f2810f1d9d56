"""ResNet-10, a residual network of one basic block a stage, with random weights."""

from __future__ import annotations

from transformers import ResNetConfig, ResNetModel

from galenic.core.inputs import InputSpec
from galenic.models.backbone import Opened

STAGES = 4


def build(*, random: bool = False, channels: int | None = None, width: int = 64) -> Opened:
    """A network of pictures whose pooled feature has 8 x `width` channels.

    Args:
        random: Weights are random in any case.
        channels: Of the pictures; None for three.
        width: Channels of the first stage; each later one has twice as many.
    """
    del random
    channels = channels or 3
    config = ResNetConfig(
        num_channels=channels,
        embedding_size=width,
        hidden_sizes=[width * 2**stage for stage in range(STAGES)],
        depths=[1] * STAGES,
        layer_type="basic",
    )
    half = (0.5,) * channels
    inputs = InputSpec("pixel_values", "image", channels, (224, 224), half, half)
    return Opened(ResNetModel(config).eval(), inputs)
