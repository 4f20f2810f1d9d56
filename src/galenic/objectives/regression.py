"""Losses of a continuous target beside the squared error."""

from __future__ import annotations

from torch import Tensor, nn


class Huber(nn.HuberLoss):
    """Squared error near the target, absolute error beyond `delta` (Huber, 1964, section 2).

    It is half the squared error where that is below `delta`: few grades far off weigh less.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of outputs [B] and targets [B], in any precision."""
        return super().forward(logits.float(), labels.float())
