"""Vision transformer of Dosovitskiy et al. (2021), of any size, with random weights."""

from __future__ import annotations

from typing import NamedTuple

from galenic.core.errors import nearest
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Opened
from galenic.models.builtin._package import IMAGENET_MEAN, IMAGENET_STD


class Size(NamedTuple):
    """Width of a token, blocks, and heads of attention."""

    width: int
    depth: int
    heads: int


SIZES = {"tiny": Size(192, 12, 3), "small": Size(384, 12, 6), "base": Size(768, 12, 12)}


def build(
    *,
    random: bool = False,
    channels: int | None = None,
    size: str = "small",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    patch: int = 16,
    image: int = 224,
) -> Opened:
    """transformers' `ViTModel`, fed pictures normalised as ImageNet's are.

    Args:
        random: Weights are random in any case.
        channels: Of the input; three by default.
        size: `tiny`, `small` or `base`, with 5.7, 22 and 86 M parameters.
        width: Of a token, instead of the size's own.
        depth: Blocks, likewise.
        heads: Of attention, likewise.
        patch: Side of a patch, in pixels.
        image: Side of the picture, in pixels.

    Raises:
        ValueError: If the numbers do not fit each other.
    """
    del random
    from transformers import ViTConfig, ViTModel

    if size not in SIZES:
        raise ValueError(f"size is '{size}'; known are {', '.join(SIZES)}. {nearest(size, SIZES)}")
    preset = SIZES[size]
    width, depth, heads = width or preset.width, depth or preset.depth, heads or preset.heads
    if width % heads or image % patch:
        raise ValueError(
            f"{heads} heads must divide the width, {width}, and patches of {patch} pixels the "
            f"side, {image}"
        )
    found = channels or 3
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=image,
        patch_size=patch,
        num_channels=found,
    )
    network = ViTModel(config, add_pooling_layer=False).eval()
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if found == 3 else ((0.5,) * found, (0.25,) * found)
    spec = InputSpec("pixel_values", "image", found, (image, image), mean, std)
    return Opened(network, spec, pool="mean", prefix_tokens=1)
