"""SparK: the encoder sees a part of the cells, and the decoder paints the others."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError, DataError
from galenic.models.backbone import Backbone
from galenic.objectives.pretraining._masking import noise
from galenic.objectives.pretraining._patches import moments, patchify, take, unpatchify
from galenic.objectives.pretraining._projection import drawn
from galenic.objectives.pretraining.spark.decoder import Decoder
from galenic.objectives.pretraining.spark.maps import caught, find, refuse_recomputing
from galenic.objectives.pretraining.spark.sparse import Sparse

if TYPE_CHECKING:
    from galenic.objectives.pretraining.spark import Config


class Spark(nn.Module):
    """Squared error of the masked cells, each normalised by itself (Tian et al., 2023, eq. 5).

    Args:
        backbone: Its network is called, never changed but by training.
        config: Of the method.
        seed: Of the decoder's first weights.

    Raises:
        BackboneError: If the network cannot be made sparse.
        ConfigError: If cells or widths do not fit it.
    """

    def __init__(self, backbone: Backbone, config: Config, seed: int) -> None:
        super().__init__()
        self.maps = find(backbone)
        self.key, self.sparse = backbone.inputs.key, config.sparse
        self.size = tuple(backbone.inputs.size or ())
        self.cell = _cell(config.cell, self.maps.stride, self.size)
        self.grid = tuple(s // c for s, c in zip(self.size, self.cell, strict=True))
        cells = math.prod(self.grid)
        self.seen = round(cells * (1 - config.mask_ratio))
        if not 0 < self.seen < cells:
            raise ConfigError(
                f"{config.mask_ratio:g} of {cells} cells masked leaves {self.seen} to be seen.",
                where="pretraining.mask_ratio",
                expected=f"1 to {cells - 1} seen cells",
                next_step="Take a larger input.size, or another mask_ratio.",
            )
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules())
        with drawn(seed, "spark"):
            self.decoder = Decoder(
                self.maps, backbone.inputs.channels, config.decoder_width, batch_norm
            )
        self.network = backbone.network.requires_grad_(True)

    def forward(self, draws: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            draws: A seed a sample [B], which the mask is drawn from.
            **inputs: Pixels [B, C, *S]; with [B, N, C, *S] each of N slices has its mask.

        Returns:
            `loss`: scalar; `losses`: [B], mean squared error of the masked cells.
        """
        pixels, active = self.masked(inputs[self.key], draws)
        patches = patchify(pixels, self.cell)
        hidden = _places(~active)
        target = take(patches, hidden)
        mean, spread = moments(target)
        painted = take(patchify(self.painted(pixels, active), self.cell), hidden).float()
        losses = (painted - (target - mean) / spread).square().mean(dim=(1, 2))
        losses = losses.unflatten(0, (len(draws), -1)).mean(dim=1)
        return {"loss": losses.mean(), "losses": losses}

    def masked(self, pixels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, C, *S], slices side by side, and their active cells [B, 1, *G].

        Raises:
            DataError: If the pixels are of another size.
        """
        slices = 1
        if pixels.ndim > 2 + len(self.size):
            slices, pixels = pixels.shape[1], pixels.flatten(0, 1)
        if tuple(pixels.shape[2:]) != self.size:
            raise DataError(
                f"A batch of {tuple(pixels.shape[2:])} pixels; the cells were made for {self.size}."
            )
        order = noise(draws, math.prod(self.grid), slices).argsort(dim=1)
        active = torch.zeros_like(order, dtype=torch.bool)
        active.scatter_(1, order[:, : self.seen], True)
        return pixels, active.view(-1, 1, *self.grid)

    def painted(self, pixels: Tensor, active: Tensor) -> Tensor:
        """What the decoder paints [B, C, *S], of the active cells [B, 1, *G] alone."""
        sparse = Sparse(active, self.maps.sides)
        found = self.encoded(pixels, sparse)
        scope: Any = sparse if self.sparse else nullcontext()
        dense = {}
        for part, place in zip(self.decoder.densify, reversed(self.maps.places), strict=False):
            x = found[place.stride]
            region = sparse.first(x)
            assert region is not None
            dense[place.stride] = part(x, region.mask, scope)
        painted: Tensor = self.decoder(dense)
        return painted

    def encoded(self, pixels: Tensor, sparse: Sparse) -> dict[tuple[int, ...], Tensor]:
        """Feature maps of the network by stride, zero outside the active cells.

        Raises:
            ConfigError: If the network recomputes its activations.
        """
        refuse_recomputing(self.network)
        region = sparse.first(pixels)
        assert region is not None
        seen = pixels.masked_fill(~region.mask, 0)
        scope: Any = sparse if self.sparse else nullcontext()
        with caught(self.network, self.maps.places) as found, scope:
            self.network(**{self.key: seen})
        return {place.stride: x for place, x in found.items()}

    @torch.no_grad()
    def pictures(self, draws: Tensor, **inputs: Tensor) -> Tensor:
        """Input, visible cells, and the input with its masked cells painted [B, 3, C, *S]."""
        pixels, active = self.masked(inputs[self.key], draws)
        patches = patchify(pixels, self.cell)
        mean, spread = moments(patches)
        painted = patchify(self.painted(pixels, active), self.cell).float() * spread + mean
        seen = active.flatten(1).unsqueeze(-1)
        stages = [patches, patches.where(seen, 0.0), patches.where(seen, painted)]
        shown = [unpatchify(stage, self.cell, self.grid) for stage in stages]
        return torch.stack(shown, dim=1)[:: len(pixels) // len(draws)]


def _cell(side: int | None, stride: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of a cell: those asked for, or the network's stride."""
    cell = stride if side is None else (side,) * len(stride)
    if any(c % s or w % c for c, s, w in zip(cell, stride, size, strict=True)):
        raise ConfigError(
            f"Cells of {cell} pixels do not fit an input of {size} and a stride of {stride}.",
            where="pretraining.cell",
            expected="a multiple of the stride that divides the input",
        )
    return cell


def _places(chosen: Tensor) -> Tensor:
    """Places [B, k] of the chosen cells [B, 1, *G], as many in each sample."""
    flat = chosen.flatten(1)
    return flat.nonzero()[:, 1].view(len(flat), -1)
