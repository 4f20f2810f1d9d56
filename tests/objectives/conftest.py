"""Networks that several objectives are tried on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened


class Cubes(nn.Module):
    """A transformer of the patches of a volume, as MONAI's is."""

    def __init__(self, side: int = 12, patch: int = 4, width: int = 24) -> None:
        super().__init__()
        self.cut = nn.Conv3d(1, width, patch, patch)
        self.position_embeddings = nn.Parameter(torch.randn(1, (side // patch) ** 3, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 48, 0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.cut(images).flatten(2).transpose(1, 2) + self.position_embeddings
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


@pytest.fixture
def cubes() -> Backbone:
    """A backbone of volumes of 12 voxels a side."""
    torch.manual_seed(0)
    spec = InputSpec("images", "volume", 1, (12, 12, 12))
    return Backbone(Opened(Cubes().eval(), spec), "cubes", "mean")
