"""The network of a stay: each modality on the same regular times, then fused to one feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from galenic.models.irregular.attention import TimeAttention, TimeEmbedding
from galenic.models.irregular.fusion import Fusion, FusionMethod
from galenic.models.irregular.utde import GateLevel, SeriesEmbedding


@dataclass(frozen=True)
class Sizes:
    """Of a network of stays; the paper's as defaults.

    Attributes:
        steps: Regular times T of the window.
        width: Of the states.
        time_width: Of the time embedding.
        layers: Of the fusion.
        heads: Of every attention.
        dropout: Everywhere.
    """

    steps: int = 48
    width: int = 128
    time_width: int = 64
    layers: int = 3
    heads: int = 8
    dropout: float = 0.1


class StayNetwork(nn.Module):
    """Series and notes of a stay to one feature.

    A batch holds, for a modality NAME of series, `NAME.values` [B, L, D], `NAME.mask` [B, L, D],
    `NAME.times` [B, L], `NAME.grid` [B, T, D] and `NAME.observed` [B, T, D]; for notes
    `notes.features` [B, K, W], `notes.mask` [B, K] and `notes.times` [B, K]. Times are shares of
    the window; masks are bool.

    Args:
        series: Number of channels by name of a modality.
        notes: Width of a note's feature; None without notes.
        sizes: Of everything.
        level: Of the gates.
        fusion: How two modalities meet.
    """

    queries: Tensor

    def __init__(
        self,
        series: Mapping[str, int],
        notes: int | None = None,
        *,
        sizes: Sizes | None = None,
        level: GateLevel = "batch_seq_feature",
        fusion: FusionMethod = "interleaved",
    ) -> None:
        super().__init__()
        at = sizes or Sizes()
        self.register_buffer("queries", torch.linspace(0, 1, at.steps), persistent=False)
        self.time = TimeEmbedding(at.time_width)
        own: dict[str, Any] = {"heads": at.heads, "dropout": at.dropout}
        timed = own | {"time_width": at.time_width}
        self.series = nn.ModuleDict(
            {
                name: SeriesEmbedding(channels, at.width, level=level, **timed)
                for name, channels in series.items()
            }
        )
        self.notes = None
        if notes is not None:
            self.notes_dropout = nn.Dropout(at.dropout)
            self.notes = TimeAttention(notes, at.width, with_mask=False, **timed)
        count = len(self.series) + (notes is not None)
        self.fusion = Fusion(count, at.steps, at.width, method=fusion, layers=at.layers, **own)
        self.width = self.fusion.width

    def forward(self, **batch: Tensor) -> Tensor:
        """Feature [B, width] of a batch."""
        states, present = [], []
        for name, embed in self.series.items():
            states.append(embed(*self._series(batch, name))[0])
            present.append(batch[f"{name}.mask"].flatten(1).any(dim=1))
        if self.notes is not None:
            mask = batch["notes.mask"]
            features = self.notes_dropout(batch["notes.features"])
            times = self.time(batch["notes.times"])
            states.append(self.notes(features, mask.unsqueeze(-1), times, self.time(self.queries)))
            present.append(mask.any(dim=1))
        return self.fusion(states, torch.stack(present, dim=1))

    def _series(self, batch: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
        values, mask, times, grid, observed = (
            batch[f"{name}.{key}"] for key in ("values", "mask", "times", "grid", "observed")
        )
        return values, mask, self.time(times), self.time(self.queries), grid, observed

    @torch.no_grad()
    def explain(self, name: str, **batch: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the network looks at in one modality of series.

        Args:
            name: The modality.
            **batch: As for :meth:`forward`.

        Returns:
            The gate [B, T or 1], averaged over features: near 1 the attended series is used, near
            0 the imputed one. And the share of each channel in the attended series [B, D]: the
            norm of what it adds, averaged over time; 0 for a channel that was never observed.
            None where the modality has no gate, or no time attention.
        """
        embed: SeriesEmbedding = self.series[name]  # type: ignore[assignment]
        values, mask, times, queries, *grids = self._series(batch, name)
        gate = embed(values, mask, times, queries, *grids)[1]
        shares = None
        if (attention := embed.attention) is not None:
            seen = attention.averages(values, mask, times, queries)
            weight = attention.out.weight.unflatten(1, (attention.heads, -1))
            weight = weight[:, :, : values.shape[-1]]
            size = torch.einsum("bhqc,whc->bqcw", seen, weight).norm(dim=-1).mean(dim=1)
            shares = size / size.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return None if gate is None else gate.mean(dim=-1), shares


class GridNetwork(nn.Module):
    """The baseline: a GRU over the series, carried forward on the grid, with its mask.

    Args:
        channels: Of the series.
        width: Of the GRU.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * channels, width, batch_first=True)
        self.width = width

    def forward(self, **batch: Tensor) -> Tensor:
        """Last state [B, width] of a batch as :class:`StayNetwork` reads it."""
        grid, observed = batch["series.grid"], batch["series.observed"]
        states, _ = self.gru(torch.cat([grid, observed.to(grid.dtype)], dim=-1))
        return states[:, -1]


class ResidualHead(nn.Module):
    """x + perceptron(x), then one linear layer to the logits.

    Args:
        width: Of the feature.
        outputs: Number of logits.
        dropout: Inside the perceptron.
    """

    def __init__(self, width: int, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.linear = nn.Linear(width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, outputs] of features [B, width]."""
        return self.linear(features + self.mlp(features))
