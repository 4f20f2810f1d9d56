"""Classification and regression on the pooled feature of a backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.objectives.imbalance import ClassLoss

TargetKind = Literal["binary", "multiclass", "multilabel", "ordinal", "continuous"]


class Classifier(nn.Module):
    """An encoder, a head and the loss of one kind of target.

    Args:
        encoder: Module from batch keywords to pooled features [B, width].
        head: Module from pooled features to raw outputs [B, outputs].
        kind: What the target is; it decides loss and shape (see :func:`target_loss`).
        centre: Mean of a continuous target in training, in its own unit.
        spread: Standard deviation of a continuous target in training.
        label_smoothing: Share of the probability spread over all classes (multiclass, ordinal).
        pos_weight: Of a 1 in the loss (binary, multilabel).
        unlabelled_weight: Of a 0 in the loss (binary, multilabel).
        class_loss: Of logits and labels (continuous ones standardised), in place of the loss of
            the kind.
        penalty: Scalar added to the loss in training, such as a tuner's own term.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        kind: TargetKind,
        *,
        centre: float = 0.0,
        spread: float = 1.0,
        label_smoothing: float = 0.0,
        pos_weight: float = 1.0,
        unlabelled_weight: float = 1.0,
        class_loss: nn.Module | None = None,
        penalty: Callable[[], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.kind: TargetKind = kind
        self.label_smoothing = label_smoothing
        self.weights = (unlabelled_weight, pos_weight)
        self.class_loss = class_loss
        self.penalty = penalty
        self.register_buffer("centre", torch.tensor(centre))
        self.register_buffer("spread", torch.tensor(spread))

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Logits, and the loss where labels are given.

        Args:
            labels: Integer [B] (binary, multiclass, ordinal), float [B, C] with NaN for unknown
                (multilabel), float [B] (continuous).
            **inputs: What the encoder takes.

        Returns:
            `logits`: [B] (binary, continuous in standardised units) or [B, C]; `loss`: scalar.
        """
        logits = self.head(self.encoder(**inputs))
        if self.kind in ("binary", "continuous"):
            logits = logits.squeeze(-1)
        outputs = {"logits": logits}
        if labels is not None:
            outputs["loss"] = self._loss(logits, labels)
            if self.training and self.penalty is not None:
                outputs["loss"] = outputs["loss"] + self.penalty()
        return outputs

    def costs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss [B] of each sample, without the penalty; classes weigh as they do in the batch.

        Args:
            logits: As `forward` gives them.
            labels: As `forward` takes them.
        """
        each = torch.vmap(lambda logit, label: self._loss(logit[None], label[None]))
        costs = each(logits, labels)
        if isinstance(self.class_loss, ClassLoss):
            # Alone in its mean, a sample loses its weight.
            costs = costs * self.class_loss.shares(labels)
        return costs

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.kind == "continuous":
            labels = (labels - self.centre) / self.spread
        if self.class_loss is not None:
            loss: Tensor = self.class_loss(logits, labels)
            return loss
        return target_loss(self.kind, logits, labels, self.label_smoothing, self.weights)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the network's activations in the backward pass."""
        enable: Any = self.encoder.gradient_checkpointing_enable
        enable()


def target_loss(
    kind: TargetKind,
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Mean loss: cross-entropy, or squared error for a continuous target; unknowns masked out.

    Args:
        kind: What the target is.
        logits: [B] for binary and continuous, else [B, C].
        labels: As in :meth:`Classifier.forward`, continuous ones standardised.
        label_smoothing: Share of a label that is divided among all its classes, both of them for
            binary and multilabel.
        weights: Of the terms of a 0 and of a 1, for binary and multilabel; the mean is over all
            known labels, whatever they weigh.
    """
    logits = logits.float()
    if kind == "continuous":
        return functional.mse_loss(logits, labels.float())
    if kind in ("binary", "multilabel"):
        known = ~labels.isnan()
        labels = labels.nan_to_num().float()
        smooth = labels * (1 - label_smoothing) + label_smoothing / 2
        loss = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        zero, one = weights
        loss = loss * torch.where(labels == 1, one, zero) * known
        return loss.sum() / known.sum().clamp_min(1)
    return functional.cross_entropy(logits, labels.long(), label_smoothing=label_smoothing)
