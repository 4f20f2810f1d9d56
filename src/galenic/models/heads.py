"""Heads: from a pooled feature to the logits of one target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from galenic.core.errors import DataError, WeightsError, nearest


class LinearHead(nn.Module):
    """Standardise with fixed statistics, then one linear layer that starts at zero.

    Args:
        width: Size of the pooled feature.
        outputs: Number of logits.
        dropout: Probability of dropping a standardised feature.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def standardise(self, features: Tensor) -> None:
        """Take mean and spread per channel from training features [N, width]."""
        self.mean.copy_(features.mean(dim=0))
        # A channel that never moves in training carries nothing; it must not explode in test.
        spread = features.std(dim=0, correction=0)
        self.scale.copy_(torch.where(spread > 1e-6, 1.0 / spread.clamp_min(1e-6), 0.0))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, outputs] of pooled features [B, width]."""
        return self.linear(self.dropout((features - self.mean) * self.scale))


class CumulativeHead(LinearHead):
    """Proportional odds for grades: P(y <= k) = sigmoid(theta_k - w.x), theta ascending.

    One direction for all grades, and thresholds that cannot cross (McCullagh, JRSS B 1980). Begins
    with every grade equally likely.

    Args:
        width: Size of the pooled feature.
        outputs: Number of grades, at least 2.
        dropout: Probability of dropping a standardised feature.
    """

    def __init__(self, width: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__(width, 1, dropout)
        # The thresholds are the bias.
        self.linear.register_parameter("bias", None)
        even = torch.logit(torch.arange(1, outputs) / outputs)
        self.first = nn.Parameter(even[:1])
        self.log_gaps = nn.Parameter(even.diff().log())

    @property
    def thresholds(self) -> Tensor:
        """Ascending [outputs - 1]."""
        return torch.cat([self.first, self.first + self.log_gaps.exp().cumsum(0)])

    def forward(self, features: Tensor) -> Tensor:
        """Log-probabilities [B, outputs], which are logits too, of pooled features [B, width]."""
        below = self.thresholds - super().forward(features)
        upper = nn.functional.logsigmoid(nn.functional.pad(below, (0, 1), value=torch.inf))
        lower = nn.functional.logsigmoid(-nn.functional.pad(below, (1, 0), value=-torch.inf))
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), without cancellation.
        between = torch.log(-torch.expm1(-self.log_gaps.exp()))
        return upper + lower + nn.functional.pad(between, (1, 1))


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """The head that a checkpoint was trained with.

    Attributes:
        labels: Name of each output; () where nothing says.
        weight: [outputs, width].
        bias: [outputs].
    """

    labels: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    def of(self, labels: Sequence[str]) -> LinearHead:
        """A head with the rows of `labels`, in their order; upper and lower case are the same.

        Raises:
            WeightsError: If the outputs have no names.
            DataError: If there is no output for a label; names the nearest.
        """
        if not self.labels:
            raise WeightsError(
                f"Nothing says what the {len(self.bias)} outputs of the checkpoint's head are.",
                next_step="Put their names, one a line, into tasks.txt beside the checkpoint.",
            )
        known = {name.casefold(): place for place, name in enumerate(self.labels)}
        unknown = [label for label in labels if label.casefold() not in known]
        if unknown:
            raise DataError(
                f"The checkpoint's head knows no label '{unknown[0]}'. "
                f"{nearest(unknown[0].upper(), self.labels)}".strip(),
                expected="labels named as those of the checkpoint",
                next_step="Rename the label columns, or train a head: head.kind=linear",
            )
        places = [known[label.casefold()] for label in labels]
        head = LinearHead(self.weight.shape[1], len(places))
        with torch.no_grad():
            head.linear.weight.copy_(self.weight[places])
            head.linear.bias.copy_(self.bias[places])
        return head


class NeighbourHead(nn.Module):
    """Weighted k nearest neighbours by cosine similarity (Wu et al., CVPR 2018; DINO, 2021).

    A training sample with similarity s votes with weight exp(s / temperature).

    Args:
        neighbours: How many of the nearest training samples vote (k).
        temperature: 0.07 in both papers.
    """

    features: Tensor
    targets: Tensor

    def __init__(self, width: int, outputs: int, neighbours: int, temperature: float) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.temperature = temperature
        self.register_buffer("features", torch.zeros(0, width))
        self.register_buffer("targets", torch.zeros(0, outputs))

    @classmethod
    def of(cls, state: Mapping[str, Tensor], neighbours: int, temperature: float) -> NeighbourHead:
        """A head that remembers what another one's state says."""
        features, targets = state["features"], state["targets"]
        head = cls(features.shape[1], targets.shape[1], neighbours, temperature)
        head.features, head.targets = features, targets
        return head

    def remember(self, features: Tensor, targets: Tensor) -> None:
        """Keep training features [N, width] and what each votes for [N, outputs].

        A target that is NaN (unknown) casts no vote.
        """
        self.features = nn.functional.normalize(features, dim=1)
        self.targets = targets

    def forward(self, features: Tensor) -> Tensor:
        """Weighted mean of the neighbours' targets [B, outputs], each in its own unit."""
        similarity = nn.functional.normalize(features, dim=1) @ self.features.T
        k = min(self.neighbours, self.features.shape[0])
        nearest, index = similarity.topk(k, dim=1)
        votes = self.targets[index]
        weight = (nearest / self.temperature).softmax(dim=1).unsqueeze(-1) * ~votes.isnan()
        total = weight.sum(dim=1)
        mean = (weight * votes.nan_to_num()).sum(dim=1) / total.clamp_min(1e-12)
        return torch.where(total > 0, mean, self.targets.nanmean(dim=0))
