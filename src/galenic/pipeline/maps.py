"""The feature maps of a backbone, from raw inputs or from what was computed ahead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from galenic.core.prediction import evaluating
from galenic.models.backbone import Backbone
from galenic.models.maps import find, maps
from galenic.pipeline.encoder import PooledEncoder

Array = np.ndarray[Any, np.dtype[Any]]


class MapEncoder(PooledEncoder):
    """Feature maps of a backbone, finest first.

    Args:
        backbone: With its tuner in it.
        levels: How many.

    Attributes:
        shapes: Of each map, without the batch axis.
        place: Name of these maps, for caches.
    """

    def __init__(self, backbone: Backbone, levels: int) -> None:
        super().__init__(backbone)
        self.places = find(backbone, levels)
        with evaluating(backbone), torch.no_grad():
            found = maps(backbone, self.places, backbone.example())
        self.shapes = [tuple(one.shape[1:]) for one in found]
        self.place = "maps " + " ".join(self.places)

    def forward(self, packed: Tensor | None = None, **inputs: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Maps [B, C, ...].

        Args:
            packed: Maps [B, all values] that were computed ahead.
            **inputs: What the backbone takes.
        """
        if packed is None:
            return maps(self.backbone, self.places, inputs)
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = packed.split(sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def pack(self, inputs: dict[str, Tensor]) -> list[Array]:
        """All maps of each sample of a batch, as one array [all values]."""
        flat = torch.cat([one.flatten(1) for one in self(**inputs)], dim=1)
        return list(flat.float().cpu().numpy())
