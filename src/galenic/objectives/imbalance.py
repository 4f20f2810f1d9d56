"""Losses for classes of unequal size, and of unequal price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.core.errors import ConfigError

LossKind = Literal["ce", "weighted", "effective", "cost_matrix", "focal", "logit_adjust"]


class ClassLoss(nn.Module):
    """A loss over the classes of a binary, multiclass or ordinal target.

    Args:
        kind: weighted: cross-entropy, a class by its inverse frequency. effective: by its
            effective number of samples (Cui et al., CVPR 2019). cost_matrix: the expected cost
            (Elkan, IJCAI 2001). focal: Lin et al., ICCV 2017. logit_adjust: logits are raised by
            the log of the training frequency (Menon et al., ICLR 2021).
        counts: Training samples of each class [C].
        beta: Of effective.
        gamma: Of focal.
        costs: What it costs to say the column's class where the row's is true [C, C].

    Raises:
        ConfigError: If the matrix of costs has another shape or a negative entry.
    """

    weights: Tensor
    prior: Tensor
    costs: Tensor

    def __init__(
        self,
        kind: LossKind,
        counts: Tensor,
        *,
        beta: float = 0.999,
        gamma: float = 2.0,
        costs: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.kind: LossKind = kind
        self.gamma = gamma
        weights = torch.ones(len(counts))
        if kind == "weighted":
            weights = inverse_frequency(counts)
        elif kind == "effective":
            weights = effective_number(counts, beta)
        matrix = _checked(costs, len(counts)) if kind == "cost_matrix" else torch.empty(0)
        prior = counts.float().log() - counts.sum().float().log()
        for name, value in (("weights", weights), ("prior", prior), ("costs", matrix)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss.

        Args:
            logits: [B, C], or [B] for the second of two classes.
            labels: Classes [B].
        """
        logits, labels = as_classes(logits.float()), labels.long()
        if self.kind == "cost_matrix":
            return expected_cost(logits, labels, self.costs)
        if self.kind == "focal":
            return focal(logits, labels, self.gamma)
        if self.kind == "logit_adjust":
            # A class that training never has cannot be a label; its logit needs no raise.
            logits = logits + self.prior.clamp_min(torch.finfo(torch.float32).min)
        return functional.cross_entropy(logits, labels, self.weights)

    def shares(self, labels: Tensor) -> Tensor:
        """Weights [B] of the samples of a batch of classes [B], whose mean is 1."""
        weights = self.weights[labels.long()]
        return weights / weights.mean()


def as_classes(logits: Tensor) -> Tensor:
    """Logits [B, C]; of a binary one [B], whose softmax over [0, z] is sigmoid(z), [B, 2]."""
    if logits.ndim > 1:
        return logits
    return torch.stack([torch.zeros_like(logits), logits], dim=1)


def inverse_frequency(counts: Tensor) -> Tensor:
    """w_c = N / (K n_c) over the K classes that occur, so that sum_c n_c w_c = N; else 0."""
    occurs = counts > 0
    weights = counts.sum() / (occurs.sum() * counts.clamp_min(1))
    return torch.where(occurs, weights, 0.0)


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """w_c in proportion to (1 - beta) / (1 - beta^n_c), scaled as :func:`inverse_frequency`."""
    occurs = counts > 0
    exact = counts.double()
    raw = torch.where(occurs, (1 - beta) / (1 - beta ** exact.clamp_min(1)), 0.0)
    return (raw * exact.sum() / (raw * exact).sum()).float()


def expected_cost(logits: Tensor, labels: Tensor, costs: Tensor) -> Tensor:
    """Mean of sum_k costs[y, k] p_k.

    Args:
        logits: [B, C].
        labels: [B].
        costs: [C, C], the truth by row.
    """
    return (costs[labels] * logits.softmax(dim=1)).sum(dim=1).mean()


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean of -(1 - p_y)^gamma log p_y, of logits [B, C] and labels [B]."""
    log_p = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    # At p = 1 the power's own gradient would be infinite for gamma below 1.
    hard = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    return -(hard**gamma * log_p).mean()


def _checked(costs: Sequence[Sequence[float]] | None, classes: int) -> Tensor:
    rows = [list(row) for row in costs or []]
    if len(rows) != classes or any(len(row) != classes for row in rows):
        raise ConfigError(
            f"The matrix of costs has rows of {[len(row) for row in rows]}.",
            where="head.loss.costs",
            expected=f"{classes} rows of {classes}: one a class, in the order of the classes",
        )
    matrix = torch.tensor(rows)
    if not (matrix >= 0).all():
        raise ConfigError("A cost is negative.", where="head.loss.costs", expected="0 or more")
    return matrix.float()
