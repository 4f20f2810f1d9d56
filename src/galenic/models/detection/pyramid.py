"""A feature pyramid on any image network (Lin et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.core.errors import BackboneError
from galenic.core.prediction import evaluating
from galenic.models.backbone import Backbone
from galenic.models.maps import as_map, passed


class Pyramid(nn.Module):
    """Maps of one width at several strides.

    Strides that a network lacks are made of its nearest map: of a transformer of one resolution
    all of them are, as in ViTDet (Li et al., ECCV 2022).

    Args:
        backbone: Any network of two-dimensional images, with its tuner in it.
        width: Channels of the maps.
        strides: Pixels a place, ascending.

    Raises:
        BackboneError: If the network gives no map.
    """

    def __init__(self, backbone: Backbone, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.strides = tuple(strides)
        found = _taps(backbone)
        # The network's own stride that stands for each.
        self.sources = tuple(min((abs(own - at), own) for own in found)[1] for at in self.strides)
        self.places = {own: found[own][0] for own in set(self.sources)}
        channels = [found[own][1] for own in self.sources]
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Maps [B, width, H / s, W / s], one a stride, of pixels [B, C, H, W]."""
        batch = {self.backbone.inputs.key: pixels}
        raw, _ = passed(self.backbone, tuple(self.places.values()), batch)
        prefix = self.backbone.prefix_tokens
        height, breadth = pixels.shape[-2:]
        levels = list(zip(self.strides, self.sources, self.lateral, strict=True))
        found: list[Tensor] = []
        for stride, source, lateral in reversed(levels):
            size = (-(-height // stride), -(-breadth // stride))
            own = as_map(raw[self.places[source]], (height, breadth), prefix)
            assert own is not None
            state = lateral(own)
            if state.shape[-2:] != size:
                state = functional.interpolate(state, size, mode="bilinear")
            if found:
                state = state + functional.interpolate(found[0], size, mode="nearest")
            found.insert(0, state)
        return [smooth(state) for smooth, state in zip(self.smooth, found, strict=True)]


def _taps(backbone: Backbone) -> dict[int, tuple[str, int]]:
    """Module and channels of the last map at each stride.

    Raises:
        BackboneError: If it gives no map at all.
    """
    size = backbone.inputs.size
    if backbone.inputs.form != "image" or size is None:
        raise BackboneError(
            f"'{backbone.spec}' reads {backbone.inputs.form}; boxes lie on images of a known size.",
            expected="a network of two-dimensional images",
        )
    names = [name for name, _ in backbone.network.named_modules() if name]
    with evaluating(backbone), torch.no_grad():
        outputs, _ = passed(backbone, names, backbone.example(2))
    found: dict[int, tuple[str, int]] = {}
    # In the order in which the modules end.
    for name, output in outputs.items():
        state = as_map(output, size, backbone.prefix_tokens)
        if state is None or len(state) != 2 or state.shape[2] == size[0]:
            continue
        found[round(size[0] / state.shape[2])] = (name, state.shape[1])
    if not found:
        raise BackboneError(
            f"'{backbone.spec}' gives no map of its image.",
            expected="a convolutional network, or a transformer with a grid of tokens",
            next_step="backbone=builtin:efficientnet-lite0",
        )
    return found
