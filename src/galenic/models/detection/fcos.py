"""An anchor-free detector on any image network.

FCOS (Tian et al., ICCV 2019): every place of a pyramid says which class lies there, how far the
four sides of its box are, and how near it is to the centre of that box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from galenic.models.backbone import Backbone
from galenic.models.detection.boxes import best
from galenic.models.detection.pyramid import Pyramid

# Chance of a box that an untrained head gives every place (Lin et al., ICCV 2017, section 3.3).
PRIOR = 0.01
TOWER = 2
GROUPS = 8
CANDIDATES = 400


@dataclass(frozen=True)
class Raw:
    """What the heads say at all N places of the pyramid.

    Attributes:
        logits: Of the classes [B, N, K].
        sides: Distances to left, top, right and bottom in pixels [B, N, 4].
        centred: Logit of how near the place is to the centre of its box [B, N].
        places: Centres of the places, in pixels of the input [N, 2].
        strides: Pixels a place [N].
    """

    logits: Tensor
    sides: Tensor
    centred: Tensor
    places: Tensor
    strides: Tensor

    @property
    def boxes(self) -> Tensor:
        """Corners [B, N, 4] in pixels of the input."""
        low = self.places - self.sides[..., :2]
        return torch.cat([low, self.places + self.sides[..., 2:]], dim=-1)


class Fcos(nn.Module):
    """A pyramid, and two towers that all its levels share.

    Args:
        backbone: Any network of two-dimensional images.
        classes: Kinds of box K.
        width: Channels of pyramid and towers.
        strides: Pixels a place of each level, ascending.
        most: Detections of an image.
        overlap: Intersection over union from which one of two boxes of a class goes.

    Raises:
        BackboneError: If the network gives no map.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        width: int = 96,
        strides: Sequence[int] = (8, 16, 32),
        most: int = 100,
        overlap: float = 0.6,
    ) -> None:
        super().__init__()
        self.pyramid = Pyramid(backbone, width, strides)
        self.towers = nn.ModuleList(_tower(width) for _ in range(2))
        self.classify = nn.Conv2d(width, classes, 3, padding=1)
        self.regress = nn.Conv2d(width, 4, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.zeros(len(strides)))
        self.most, self.overlap = most, overlap
        for layer in (*self.towers.modules(), self.classify, self.regress, self.centre):
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        assert self.classify.bias is not None
        nn.init.constant_(self.classify.bias, -math.log((1 - PRIOR) / PRIOR))

    @property
    def backbone(self) -> Backbone:
        """The network below the pyramid."""
        return self.pyramid.backbone

    def train(self, mode: bool = True) -> Fcos:
        """Training mode for what trains; a frozen network keeps its statistics."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def forward(self, pixels: Tensor) -> Raw:
        """What the heads say of pixels [B, C, H, W]."""
        logits, sides, centred, places, strides = [], [], [], [], []
        levels = zip(self.pyramid(pixels), self.pyramid.strides, self.scales, strict=True)
        for state, stride, scale in levels:
            named, placed = (tower(state) for tower in self.towers)
            logits.append(_listed(self.classify(named)))
            # exp of a scale that is learnt a level, in units of the stride: sides are positive.
            far = torch.exp((self.regress(placed) + scale).clamp(max=8.0)) * stride
            sides.append(_listed(far))
            centred.append(_listed(self.centre(placed)).squeeze(-1))
            places.append(_places(state, stride))
            strides.append(places[-1].new_full((len(places[-1]),), float(stride)))
        return Raw(
            torch.cat(logits, dim=1),
            torch.cat(sides, dim=1),
            torch.cat(centred, dim=1),
            torch.cat(places),
            torch.cat(strides),
        )

    def detect(self, pixels: Tensor) -> Tensor:
        """Detections [B, most, 6] of pixels [B, C, H, W], see :func:`best`.

        The score is the geometric mean of class and centredness.
        """
        raw = self(pixels)
        scores = (raw.logits.sigmoid() * raw.centred.sigmoid().unsqueeze(-1)).sqrt()
        height, width = pixels.shape[-2:]
        edge = raw.places.new_tensor([width, height, width, height])
        boxes = raw.boxes.clamp_min(0).minimum(edge)
        return best(boxes, scores, most=self.most, candidates=CANDIDATES, threshold=self.overlap)


def _tower(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(TOWER):
        convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(GROUPS, width), nn.ReLU()]
    return nn.Sequential(*layers)


def _listed(state: Tensor) -> Tensor:
    """[B, C, H, W] as [B, H * W, C]."""
    return state.flatten(2).transpose(1, 2)


def _places(state: Tensor, stride: int) -> Tensor:
    """Centres (x, y) [H * W, 2] of the places of a map [B, C, H, W], row by row.

    In single precision whatever the map has: half a pixel of a thousand is lost in bfloat16.
    """
    rows, columns = (torch.arange(n, device=state.device) for n in state.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (torch.stack([x, y], dim=-1).flatten(0, 1).float() + 0.5) * stride
