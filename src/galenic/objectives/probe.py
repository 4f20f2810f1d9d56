"""Many linear probes on one feature pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from galenic.models.heads import LinearHead
from galenic.objectives.classification import Classifier


class ProbeHead(nn.Module):
    """A linear head on some columns of a feature.

    Args:
        columns: Which.
        outputs: Number of logits.
        dropout: Probability of dropping a standardised feature.
    """

    columns: Tensor

    def __init__(self, columns: Sequence[int], outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns))
        self.head = LinearHead(len(columns), outputs, dropout)

    def standardise(self, features: Tensor) -> None:
        """Take mean and spread from training features [N, all columns]."""
        self.head.standardise(features[:, self.columns])

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, outputs] of features [B, all columns]."""
        return self.head(features[:, self.columns])


class JointProbe(nn.Module):
    """Classifiers that are trained side by side; none knows of the others.

    Their losses are added up, so that each has the gradient that it would have alone.

    Args:
        classifiers: On the same features.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Logits of each as `logits_0`, `logits_1`, ..., and the sum of all losses.

        Args:
            labels: As the classifiers take them.
            **inputs: The same.
        """
        every = [classifier(labels=labels, **inputs) for classifier in self.classifiers]
        outputs = {f"logits_{place}": found["logits"] for place, found in enumerate(every)}
        if labels is not None:
            outputs["loss"] = torch.stack([found["loss"] for found in every]).sum()
        return outputs
