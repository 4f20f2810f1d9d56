"""Policies that say of every cell of a picture how its noise is distributed.

Yavuz and Yang, "Policy Gradient-Driven Noise Mask", 2024, arXiv 2406.14568.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from galenic.core.prediction import evaluating
from galenic.models.backbone import Backbone


class BetaPolicy(nn.Module):
    """Log-parameters of a Beta distribution a cell, from the picture and a running base.

    Args:
        encoder: A network of pictures.
        grid: Cells of a side.
        decay: Share of the base in what is given; the rest is the picture's own.
        momentum: Share of the base that a training step keeps.
        generator: Of the base at the start, uniform over 0..1.

    Attributes:
        base: Running mean [2, grid * grid] of what the network says, a and b.
    """

    base: Tensor

    def __init__(
        self,
        encoder: Backbone,
        *,
        grid: int,
        decay: float = 0.9,
        momentum: float = 0.99,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decay, self.momentum = decay, momentum
        self.heads = nn.ModuleList(_head(encoder.width, grid**2) for _ in "ab")
        self.register_buffer("base", torch.rand(2, grid**2, generator=generator))

    def forward(self, pictures: Tensor) -> Tensor:
        """Log-parameters [B, 2, grid * grid] of pictures [B, C, H, W].

        In training the base moves, once a call. One picture alone has no batch statistics: it is
        read as in evaluation.
        """
        if self.training and len(pictures) == 1:
            with evaluating(self):
                return self(pictures)
        features = self.encoder(**{self.encoder.inputs.key: pictures}).pooled
        own = torch.stack([head(features) for head in self.heads], dim=1)
        logs = self.decay * self.base + (1 - self.decay) * own
        if self.training:
            self.base.lerp_(own.detach().mean(dim=0), 1 - self.momentum)
        return logs


class UniformPolicy(nn.Module):
    """Beta(1, 1) in every cell of every picture: noise that nobody chose.

    Args:
        grid: Cells of a side.

    Attributes:
        base: Zeros [2, grid * grid].
    """

    base: Tensor

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.register_buffer("base", torch.zeros(2, grid**2))

    def forward(self, pictures: Tensor) -> Tensor:
        """Zeros [B, 2, grid * grid]."""
        return self.base.expand(len(pictures), -1, -1)


def _head(width: int, cells: int) -> nn.Sequential:
    """Three layers, as the authors' code."""
    hidden = [
        layer
        for _ in range(2)
        for layer in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(width, cells))
