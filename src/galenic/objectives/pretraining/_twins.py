"""Redundancy reduction between two views (Zbontar et al., 2021, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from galenic.models.backbone import Backbone
from galenic.objectives.pretraining._projection import drawn, mlp, pair, require_several

if TYPE_CHECKING:
    from galenic.objectives.pretraining.barlow_twins import Config


class BarlowTwins(nn.Module):
    """How far the correlations of the features of two views are from the identity.

    Args:
        backbone: Its network is trained.
        config: Of the method.
        seed: Of the projector.
    """

    def __init__(self, backbone: Backbone, config: Config, seed: int) -> None:
        super().__init__()
        self.key, self.off_diagonal = backbone.inputs.key, config.off_diagonal
        self.backbone = backbone
        backbone.network.requires_grad_(True)
        with drawn(seed, "barlow_twins"):
            self.head = mlp((backbone.width, *(config.dim,) * 3), batch_norm=True)
        self.norm = nn.BatchNorm1d(config.dim, affine=False)

    def forward(self, draws: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            draws: Not needed: all that is random are the views.
            **inputs: Two views [B, 2, C, ...].

        Returns:
            `loss`: scalar, of the batch as a whole; `features`: [B, 2, d] of both views.

        Raises:
            DataError: If a batch of one sample is to be trained on.
        """
        if self.training:
            require_several(len(draws), "A batch of one sample has no correlations.")
        first, second = (self._normed(view) for view in pair(inputs[self.key]))
        loss = twins_loss(first, second, self.off_diagonal)
        return {"loss": loss, "features": torch.stack([first, second], dim=1).detach()}

    def _normed(self, pixels: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.head(self.backbone(**{self.key: pixels}).pooled))
        return normed.float()


def twins_loss(first: Tensor, second: Tensor, off_diagonal: float) -> Tensor:
    """The loss of the normed features [B, d] of two views of the same samples."""
    return redundancy(first.T @ second / len(first), off_diagonal)


def redundancy(correlation: Tensor, off_diagonal: float) -> Tensor:
    """The loss of a matrix [d, d] of correlations (equation 1)."""
    diagonal = correlation.diagonal()
    off = correlation.square().sum() - diagonal.square().sum()
    return (diagonal - 1).square().sum() + off_diagonal * off
