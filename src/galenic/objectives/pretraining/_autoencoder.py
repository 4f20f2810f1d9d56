"""The masked autoencoder (He et al., CVPR 2022, section 3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError
from galenic.core.seeding import generator
from galenic.objectives.pretraining import _masking as masking
from galenic.objectives.pretraining._decoder import Decoder
from galenic.objectives.pretraining._masking import Mask
from galenic.objectives.pretraining._patches import moments, patchify, shrink, take, unpatchify
from galenic.objectives.pretraining._vit import PatchEncoder

if TYPE_CHECKING:
    from galenic.models.backbone import Backbone
    from galenic.objectives.pretraining.mae import AutoencoderConfig


def enter(backbone: Backbone, config: AutoencoderConfig) -> PatchEncoder:
    """The network of `backbone`, to be run on some of its patches.

    Raises:
        BackboneError: If that cannot be.
        ConfigError: If so few patches are no patch, or all.
    """
    encoder = PatchEncoder(backbone)
    seen = masking.visible(encoder.count, config.mask_ratio)
    if not 0 < seen < encoder.count:
        raise ConfigError(
            f"{config.mask_ratio:g} of {encoder.count} patches hidden leaves {seen} to be seen.",
            where="pretraining.mask_ratio",
            expected=f"1 to {encoder.count - 1} visible patches",
            next_step="Take smaller patches or larger pictures, or another mask_ratio.",
        )
    return encoder


class MaskedAutoencoder(nn.Module):
    """Squared error of the hidden patches, which the encoder never sees.

    Args:
        key: Name of the pixels in a batch.
        encoder: Of visible patches; its positions are changed where `config` says so.
        config: Of the method.
        seed: Of the decoder's first weights.
        scale: Times the sides of what the encoder sees, in the pictures that come in and in
            what is filled in.
    """

    def __init__(
        self,
        key: str,
        encoder: PatchEncoder,
        config: AutoencoderConfig,
        seed: int,
        scale: int = 1,
    ) -> None:
        super().__init__()
        self.key, self.encoder, self.settings = key, encoder, config
        self.scale, self.patch = scale, tuple(scale * side for side in encoder.patch)
        encoder.network.requires_grad_(True)
        if config.positions == "sin_cos":
            encoder.fix_positions()
        self.decoder = Decoder(
            encoder.width,
            encoder.prefix,
            encoder.grid,
            encoder.channels * math.prod(self.patch),
            width=config.decoder.dim,
            depth=config.decoder.depth,
            heads=config.decoder.heads,
            generator=generator(seed, "decoder"),
        )

    def forward(self, draws: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            draws: A seed a sample [B], which the mask is drawn from.
            **inputs: Pixels [B, C, ...]; with [B, S, C, H, W] each of S slices has its mask.

        Returns:
            `loss`: scalar; `losses`: [B], mean squared error of the hidden patches.
        """
        patches, mask = self.masked(inputs[self.key], draws)
        losses = self.errors(self.predicted(patches, mask), patches, mask, len(draws))
        return {"loss": losses.mean(), "losses": losses}

    def masked(self, pixels: Tensor, draws: Tensor) -> tuple[Tensor, Mask]:
        """Patches [B * S, L, P * C] and what is hidden of them."""
        slices = 1
        if pixels.ndim > 2 + len(self.encoder.patch):
            slices, pixels = pixels.shape[1], pixels.flatten(0, 1)
        patches = patchify(pixels, self.patch)
        if patches.shape[1] != self.encoder.count:
            sides = [self.patch[k] * self.encoder.grid[k] for k in range(len(self.patch))]
            raise ValueError(f"pixels of {tuple(pixels.shape[2:])}, not of {tuple(sides)}")
        noise = masking.noise(draws, self.encoder.count, slices)
        return patches, masking.uniform(noise, self.settings.mask_ratio)

    def tokens(self, patches: Tensor, mask: Mask) -> Tensor:
        """What the encoder makes of the visible patches [B * S, prefix + k, width]."""
        seen = take(patches, mask.seen)
        if self.scale > 1:
            seen = shrink(seen, self.patch, self.scale)
        found: Tensor = self.encoder(seen, mask.seen)
        return found

    def predicted(self, patches: Tensor, mask: Mask) -> Tensor:
        """Hidden patches [B * S, L - k, P * C], from the visible ones alone."""
        found: Tensor = self.decoder(self.tokens(patches, mask), mask)
        return found

    def errors(self, predicted: Tensor, patches: Tensor, mask: Mask, samples: int) -> Tensor:
        """Mean squared error of the hidden patches of each sample [B]."""
        target = take(patches, mask.hidden)
        if self.settings.norm_pix:
            mean, spread = moments(target)
            target = (target - mean) / spread
        error = (predicted.float() - target).square().mean(dim=(1, 2))
        return error.unflatten(0, (samples, -1)).mean(dim=1)

    @torch.no_grad()
    def pictures(self, draws: Tensor, **inputs: Tensor) -> Tensor:
        """Input, visible patches, and the input with its hidden patches filled in [B, 3, C, ...]."""
        patches, mask = self.masked(inputs[self.key], draws)
        filled = self.predicted(patches, mask).float()
        if self.settings.norm_pix:
            mean, spread = moments(take(patches, mask.hidden))
            filled = filled * spread + mean
        places = mask.hidden.unsqueeze(-1).expand_as(filled)
        stages = [patches, patches.scatter(1, places, 0.0), patches.scatter(1, places, filled)]
        shown = [unpatchify(stage, self.patch, self.encoder.grid) for stage in stages]
        return torch.stack(shown, dim=1)[:: len(patches) // len(draws)]
