"""The ladder: small transformer blocks, each fed by a rung from the backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.core.errors import BackboneError
from galenic.models.prefix import unwrapped
from galenic.tuners._hidden import Hidden, Layout
from galenic.tuners._side import SideNetwork, choose
from galenic.tuners.lst.config import LSTConfig


def build(config: LSTConfig, layout: Layout, network: nn.Module) -> Ladder:
    """The side network of `config` beside `network`.

    Raises:
        BackboneError: If the network's states are no tokens.
        ConfigError: If fewer than two layers are named, or unknown ones.
        ValueError: If the reduction leaves no channel, or `heads` does not divide the width.
    """
    if layout.maps:
        raise BackboneError(
            f"'lst' cannot enter {type(network).__name__}: its states are maps of shape "
            f"{layout.shapes[-1]}.",
            expected="a transformer whose blocks all give tokens [B, N, d] of one length",
            next_step="Use unipt, which reads maps.",
        )
    layers = choose(config.layers, layout)
    inner = layout.width // config.reduction_factor
    if inner < 1:
        raise ValueError(
            f"reduction_factor {config.reduction_factor} leaves no channel of {layout.width}"
        )
    heads = config.heads or _heads(network, inner)
    if inner % heads:
        raise ValueError(f"heads is {heads}, which does not divide the side width {inner}")
    return Ladder(layout, layers, config, inner, heads)


def _heads(network: nn.Module, inner: int) -> int:
    settings: Any = getattr(unwrapped(network), "config", None)
    wanted = int(getattr(settings, "num_attention_heads", 8) or 8)
    return next(count for count in range(min(wanted, inner), 0, -1) if inner % count == 0)


def gated(own: Tensor, rung: Tensor, alpha: Tensor, temperature: float) -> Tensor:
    """`mu * rung + (1 - mu) * own` with `mu = sigmoid(alpha / temperature)`: [B, N, m].

    Args:
        own: What the side network has so far [B, N, m].
        rung: The backbone's state, lowered [B, N, m].
        alpha: Scalar.
        temperature: Below one, gates open and close faster.
    """
    mu = torch.sigmoid(alpha / temperature)
    return mu * rung + (1 - mu) * own


class SideBlock(nn.Module):
    """A transformer block with norms before: attention, then a feed-forward layer.

    Args:
        width: m.
        heads: Of the attention; divides m.
        ratio: Inner width of the feed-forward layer over m.
        dropout: After both parts.
    """

    def __init__(self, width: int, heads: int, ratio: float, dropout: float) -> None:
        super().__init__()
        inner = max(1, round(width * ratio))
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """Tokens [B, N, m]; `keep` [B, 1, 1, N] is false at keys that are padding."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(functional.gelu(self.up(self.norm2(x)))))


class Ladder(SideNetwork):
    """Tokens of every layer [B, N, d_l] to tokens [B, N, E], one block after the other.

    Args:
        layout: The states of the network.
        layers: States that are read; the first starts the side network.
        config: Of the adapter.
        inner: Width m of the side network.
        heads: Of its blocks.
    """

    def __init__(
        self, layout: Layout, layers: list[int], config: LSTConfig, inner: int, heads: int
    ) -> None:
        super().__init__(layout, layers)
        self.temperature = config.temperature
        self.rungs = nn.ModuleList(nn.Linear(layout.widths[layer], inner) for layer in layers)
        self.blocks = nn.ModuleList(
            SideBlock(inner, heads, config.ratio, config.dropout) for _ in layers[1:]
        )
        self.alpha = nn.Parameter(torch.zeros(len(layers) - 1))
        self.norm = nn.LayerNorm(inner)
        self.up = nn.Linear(inner, layout.width)

    def forward(self, hidden: Hidden) -> Tensor:
        """Tokens [B, N, E]."""
        keep = None
        if hidden.mask is not None:
            keep = (hidden.mask != 0)[:, None, None, :]
            # A sample of padding alone attends to all of it: without a key, rows are no number.
            keep = keep | ~keep.any(dim=-1, keepdim=True)
        kind = self.alpha.dtype
        first, *rest = hidden.states
        own = self.rungs[0](first.to(kind))
        for place, state in enumerate(rest):
            rung = self.rungs[place + 1](state.to(kind))
            own = self.blocks[place](gated(own, rung, self.alpha[place], self.temperature), keep)
        return self.up(self.norm(own))
