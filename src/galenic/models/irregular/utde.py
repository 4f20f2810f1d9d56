"""UTDE: a gate between a series that was imputed and one that was attended to (section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from galenic.models.irregular.attention import TimeAttention

GateLevel = Literal["batch", "batch_seq", "batch_seq_feature", "mtand", "imputation"]


class Gate(nn.Module):
    """g in (0, 1) from both embeddings: one a stay, a time, or a time and feature.

    Args:
        level: `batch`, `batch_seq` or `batch_seq_feature`.
        width: Of both embeddings.
        dropout: Before the perceptron.
    """

    def __init__(self, level: GateLevel, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.level = level
        outputs = width if level == "batch_seq_feature" else 1
        layers = nn.Linear(2 * width, width), nn.Linear(width, outputs)
        for layer in layers:
            nn.init.xavier_normal_(layer.weight)
        self.mlp = nn.Sequential(nn.Dropout(dropout), layers[0], nn.ReLU(), layers[1])

    def forward(self, attended: Tensor, imputed: Tensor) -> Tensor:
        """[B, 1, 1], [B, T, 1] or [B, T, width] of two embeddings [B, T, width]."""
        both = torch.cat([attended, imputed], dim=-1)
        if self.level == "batch":
            both = both.amax(dim=1, keepdim=True)
        return self.mlp(both).sigmoid()


class SeriesEmbedding(nn.Module):
    """E = g * E_attended + (1 - g) * E_imputed (equations 4 to 6), or one of the two alone.

    Args:
        channels: Of the series.
        width: Of E.
        level: Of the gate; `mtand` and `imputation` have none.
        time_width: Of the embedding of times.
        heads: Of the time attention.
        dropout: Of attention and gate.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        level: GateLevel = "batch_seq_feature",
        time_width: int = 64,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.attention: TimeAttention | None = None
        self.imputation: nn.Linear | None = None
        self.gate: Gate | None = None
        if level != "imputation":
            self.attention = TimeAttention(
                channels, width, time_width=time_width, heads=heads, dropout=dropout
            )
        if level != "mtand":
            # A convolution of one step is a linear layer.
            self.imputation = nn.Linear(2 * channels, width, bias=False)
        if level not in ("mtand", "imputation"):
            self.gate = Gate(level, width, dropout)

    def forward(
        self,
        values: Tensor,
        mask: Tensor,
        times: Tensor,
        queries: Tensor,
        grid: Tensor,
        observed: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """E [B, T, width], and the gate where there is one.

        Args:
            values: [B, L, channels].
            mask: Bool [B, L, channels].
            times: Embedded times of the observations [B, L, time_width].
            queries: Embedded times of the steps [T, time_width].
            grid: The series on a regular grid, without holes [B, T, channels].
            observed: Bool [B, T, channels]: where the grid holds a measurement of that step.
        """
        attended = imputed = None
        if self.attention is not None:
            attended = self.attention(values, mask, times, queries)
        if self.imputation is not None:
            imputed = self.imputation(torch.cat([grid, observed.to(grid.dtype)], dim=-1))
        if attended is None or imputed is None:
            alone = attended if imputed is None else imputed
            assert alone is not None
            return alone, None
        assert self.gate is not None
        gate = self.gate(attended, imputed)
        return gate * attended + (1 - gate) * imputed, gate
