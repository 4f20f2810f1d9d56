"""Two regular sequences become one feature: interleaved attention, and what it is compared with.

Section 3.3: layers of self-attention and cross-attention in turn. A sequence that a stay lacks
is looked at by nobody, and gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

FusionMethod = Literal["interleaved", "concat", "mult"]


class Attend(nn.Module):
    """Pre-norm attention, without its residual.

    Args:
        width: Of both sequences.
        heads: Of the attention.
        dropout: On attention and result.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """[B, T, width] of queries `x` on keys `source` [B, T', width], `x` itself if None."""
        asked = self.norm(x)
        known = asked if source is None else self.norm(source)
        found = self.attention(asked, known, known, need_weights=False)[0]
        return self.dropout(found)


class FeedForward(nn.Sequential):
    """Pre-norm perceptron, without its residual: four times as wide, ReLU."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )


class Layer(nn.Module):
    """One layer over one modality, or over two that see each other.

    Self-attention; then, with two, cross-attention in both directions, each from the states that
    both had before it; then the perceptron.

    Args:
        count: Of modalities.
        width: Of the states.
        heads: Of the attentions.
        dropout: Everywhere.
    """

    def __init__(self, count: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        own, cross = range(count), range(count if count > 1 else 0)
        self.own = nn.ModuleList(Attend(width, heads, dropout) for _ in own)
        self.cross = nn.ModuleList(Attend(width, heads, dropout) for _ in cross)
        self.forth = nn.ModuleList(FeedForward(width, dropout) for _ in own)

    def forward(self, states: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        """States [B, T, width] a modality; `present` [B, 1, 1] is 0 where a stay lacks it."""
        states = [x + attend(x) for x, attend in zip(states, self.own, strict=True)]
        if self.cross:
            first, second = states
            states = [
                first + present[1] * self.cross[0](first, second),
                second + present[0] * self.cross[1](second, first),
            ]
        return [x + forth(x) for x, forth in zip(states, self.forth, strict=True)]


class Stack(nn.Module):
    """Layers one after the other; arguments as for :class:`Layer`."""

    def __init__(self, layers: int, count: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(count, width, heads, dropout) for _ in range(layers))

    def forward(self, states: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        """As :meth:`Layer.forward`."""
        now = list(states)
        for layer in self.layers:
            now = layer(now, present)
        return now


class Crossing(nn.Module):
    """MulT: one modality reads the other, always as that one came in (Tsai et al., ACL 2019).

    Args:
        layers: Number of layers.
        width: Of the states.
        heads: Of the attentions.
        dropout: Everywhere.
    """

    def __init__(self, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.cross = nn.ModuleList(Attend(width, heads, dropout) for _ in range(layers))
        self.forth = nn.ModuleList(FeedForward(width, dropout) for _ in range(layers))

    def forward(self, x: Tensor, source: Tensor, present: Tensor) -> Tensor:
        """[B, T, width]; `present` [B, 1, 1] is 0 where `source` is missing."""
        for cross, forth in zip(self.cross, self.forth, strict=True):
            x = x + present * cross(x, source)
            x = x + forth(x)
        return x


class Fusion(nn.Module):
    """Sequences of one or two modalities to one feature [B, count * width]: their last states.

    Args:
        count: Of modalities, 1 or 2; with one every method is a transformer on it.
        steps: Length T of the sequences.
        width: Of the states.
        method: `interleaved`; `concat`, two transformers that meet at the end; `mult`.
        layers: Number of layers.
        heads: Of the attentions.
        dropout: Everywhere.
    """

    def __init__(
        self,
        count: int,
        steps: int,
        width: int,
        *,
        method: FusionMethod = "interleaved",
        layers: int = 3,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if count not in (1, 2):
            raise ValueError(f"{count} modalities: one or two can be fused")
        self.width = count * width
        self.scale = width**0.5
        self.positions = nn.Parameter(torch.randn(steps, width) * width**-0.5)
        self.dropout = nn.Dropout(dropout)
        sizes = (width, heads, dropout)
        seen = [count] if method == "interleaved" else [1] * count
        self.stacks = nn.ModuleList(Stack(layers, at_once, *sizes) for at_once in seen)
        crosses = count if method == "mult" and count > 1 else 0
        self.crossings = nn.ModuleList(Crossing(layers, *sizes) for _ in range(crosses))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))

    def forward(self, states: Sequence[Tensor], present: Tensor) -> Tensor:
        """[B, count * width] of sequences [B, T, width] and presence, bool [B, count]."""
        there = [present[:, at, None, None].to(x.dtype) for at, x in enumerate(states)]
        now = [self.dropout(self.scale * x + self.positions) for x in states]
        if self.crossings:
            first, second = now
            now = [
                self.crossings[0](first, second, there[1]),
                self.crossings[1](second, first, there[0]),
            ]
        if len(self.stacks) == 1:
            now = self.stacks[0](now, there)
        else:
            now = [stack([x], [t])[0] for stack, x, t in zip(self.stacks, now, there, strict=True)]
        last = [norm(x[:, -1]) * t[:, 0] for norm, x, t in zip(self.norms, now, there, strict=True)]
        return torch.cat(last, dim=-1)
