"""A class for every pixel: cross-entropy and soft Dice on the logits of a decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

# Added above and below, so that a structure that is nowhere in a batch costs nothing.
SMOOTH = 1e-5


class Segmenter(nn.Module):
    """An encoder, a decoder and the loss of masks.

    Args:
        encoder: Module from batch keywords to feature maps.
        decoder: Module from feature maps to logits [B, K, ...].
        dice: Weight of the soft Dice loss.
        cross_entropy: Weight of the cross-entropy.
        penalty: Scalar added to the loss in training, such as a tuner's own term.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        dice: float = 1.0,
        cross_entropy: float = 1.0,
        penalty: Callable[[], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.dice, self.cross_entropy = dice, cross_entropy
        self.penalty = penalty

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Logits; with masks the loss, and in evaluation the overlaps instead of the logits.

        Args:
            labels: Codes [B, ...], 0 for background.
            **inputs: What the encoder takes.

        Returns:
            Without labels `logits` [B, K, ...]. With labels `loss`, a scalar, and in evaluation
            `overlap` [B, K - 1, 3]: pixels of each structure in both masks, in the predicted one
            and in the true one.
        """
        logits = self.decoder(self.encoder(**inputs)).float()
        if labels is None:
            return {"logits": logits}
        loss = self.cross_entropy * functional.cross_entropy(logits, labels)
        if self.dice:
            loss = loss + self.dice * dice_loss(logits, labels)
        if not self.training:
            return {"loss": loss, "overlap": overlap(logits.argmax(dim=1), labels, logits.shape[1])}
        return {"loss": loss if self.penalty is None else loss + self.penalty()}

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the encoder's activations in the backward pass."""
        self.encoder.gradient_checkpointing_enable()  # type: ignore[operator]


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice, the mean over structures; pixels of a whole batch are counted together.

    Milletari et al., 3DV 2016, with the sums of nnU-Net; background is left out.

    Args:
        logits: [B, K, ...].
        labels: Codes [B, ...].
    """
    shares = logits.softmax(dim=1).transpose(0, 1).flatten(1)[1:]
    true = _one_hot(labels, logits.shape[1]).transpose(0, 1).flatten(1)
    both, either = (shares * true).sum(dim=1), shares.sum(dim=1) + true.sum(dim=1)
    return 1 - ((2 * both + SMOOTH) / (either + SMOOTH)).mean()


def overlap(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Pixels [B, K - 1, 3] of each structure: in both, predicted, true."""
    ours, true = (_one_hot(codes, classes).flatten(2) for codes in (predicted, labels))
    return torch.stack([(ours * true).sum(-1), ours.sum(-1), true.sum(-1)], dim=-1)


def _one_hot(codes: Tensor, classes: int) -> Tensor:
    """0 and 1 [B, K - 1, ...] of codes [B, ...], background left out."""
    return functional.one_hot(codes, classes).movedim(-1, 1)[:, 1:].float()
