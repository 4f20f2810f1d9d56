"""The layers of a LegoBlock: attention, gated feed-forward, head."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Pre-norm multi-head attention, from a sequence to another or to itself.

    Args:
        width: Of the queries and of the output.
        context_width: Of keys and values; None for attention to itself.
        heads: Number of heads.
        head_width: Width of each head.
        dropout: On the attention weights.
    """

    def __init__(
        self,
        width: int,
        context_width: int | None = None,
        *,
        heads: int = 8,
        head_width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width)
        self.norm_context = None if context_width is None else nn.LayerNorm(context_width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(context_width or width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width)

    def forward(
        self, states: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """What is to be added to `states`.

        Args:
            states: [B, Q, width].
            context: [B, N, context_width]; None for `states` itself.
            mask: [B, N], true where there is a state.

        Returns:
            [B, Q, width].
        """
        states = self.norm(states)
        if context is None or self.norm_context is None:
            context = states
        else:
            context = self.norm_context(context)
        keys, values = self.key_value(context).chunk(2, dim=-1)
        query, keys, values = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(states), keys, values)
        )
        found = functional.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=None if mask is None else mask.bool()[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Pre-norm feed-forward with a SELU gate, as in self-normalising networks."""

    def __init__(self, width: int, *, factor: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * factor * width)
        self.out = nn.Linear(factor * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """What is to be added to `states` [..., width]."""
        value, gate = self.inner(self.norm(states)).chunk(2, dim=-1)
        return self.dropout(self.out(value * functional.selu(gate)))


class SelfEncoder(nn.Module):
    """What encodes a modality that brings no encoder: self-attention, then a feed-forward."""

    def __init__(
        self, width: int, *, heads: int = 8, head_width: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.feed_forward = FeedForward(width, dropout=dropout)

    def forward(self, states: Tensor) -> Tensor:
        """[B, N, width] to [B, N, width]; [B, width] is a sequence of one."""
        states = states.unsqueeze(1) if states.ndim == 2 else states
        states = states + self.attention(states)
        return states + self.feed_forward(states)


class LegoHead(nn.Module):
    """Mean over the latents, LayerNorm, linear layer.

    Args:
        width: Channels of the latent (l_d).
        outputs: Number of logits.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, latent: Tensor) -> Tensor:
        """Logits [B, outputs] of real latents [B, l_c, l_d]."""
        return self.linear(self.norm(latent.mean(dim=1)))
