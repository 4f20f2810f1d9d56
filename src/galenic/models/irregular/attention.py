"""Attention over time: an irregular series, read at regular times (mTAND; section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Scores further than this below the largest count as this far: exp(-80) is still a float32.
FURTHEST = 80.0


def time_attention(
    scores: Tensor, values: Tensor, mask: Tensor, dropout: nn.Module | None = None
) -> Tensor:
    """Each feature averaged over its own observed times, with weights from the times alone.

    For head h, query q and feature c: o = sum_i a_i x_ic, a = softmax over the i at which c was
    observed. Scores do not depend on c, so numerator and denominator are two products of
    matrices, and no tensor [B, h, Q, L, C] is made.

    Args:
        scores: Of queries and times [B, h, Q, L].
        values: [B, L, C]; what stands where nothing was observed is not looked at.
        mask: Bool [B, L, C], or [B, L, 1] for all features at once.
        dropout: On the weights, the same for all features.

    Returns:
        [B, h, Q, C], in single precision at least; 0 for a feature that was never observed.
    """
    seen = mask.any(dim=-1)[:, None, None, :]
    empty = ~mask.any(dim=1)[:, None, None, :]
    # A ratio of two sums: in half precision one value alone would not come back as it is.
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        # The largest score of any observed time; a constant that cancels out.
        top = scores.masked_fill(~seen, -torch.inf).amax(dim=-1, keepdim=True).detach()
        top = torch.where(top.isfinite(), top, 0.0)
        weights = (scores - top).clamp(min=-FURTHEST, max=0.0).exp()
        total = weights @ mask.to(scores.dtype).unsqueeze(1)
        kept = weights if dropout is None else dropout(weights)
        found = kept @ torch.where(mask, values, 0.0).to(scores.dtype).unsqueeze(1)
        return found.div(total.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)


class TimeEmbedding(nn.Module):
    """phi(t) = [w0 t + b0 ; sin(W t + b)], learned, for times as shares of the window.

    Args:
        width: Of phi.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(1, 1)
        self.periodic = nn.Linear(1, width - 1)

    def forward(self, times: Tensor) -> Tensor:
        """[..., width] of times [...]."""
        times = times.unsqueeze(-1)
        return torch.cat([self.linear(times), self.periodic(times).sin()], dim=-1)


class TimeAttention(nn.Module):
    """Masked attention of regular queries to irregular times, a softmax a feature (mTAND).

    The paper puts the mask beside the values, as features that are averaged like them. Averaged
    over the times at which a feature was observed it is 1, or 0 if there are none; so it is
    written down, not computed.

    Args:
        features: Of an observation.
        width: Of what comes out.
        time_width: Of the embedding of times, which all modalities share.
        heads: Share that width.
        with_mask: Give out, beside each feature, whether it was ever observed.
        dropout: On the attention.
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        time_width: int = 64,
        heads: int = 8,
        with_mask: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if time_width % heads:
            raise ValueError(f"time_width {time_width} is not divisible by {heads} heads")
        self.heads, self.with_mask = heads, with_mask
        self.query = nn.Linear(time_width, time_width)
        self.key = nn.Linear(time_width, time_width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(heads * features * (1 + with_mask), width)

    def scores(self, queries: Tensor, times: Tensor) -> Tensor:
        """<Q phi(q), K phi(t)> / sqrt(d): [B, heads, Q, L]; arguments as :meth:`averages`."""
        asked = self.query(queries).unflatten(-1, (self.heads, -1))
        known = self.key(times).unflatten(-1, (self.heads, -1))
        found = torch.einsum("qhd,blhd->bhql", asked, known)
        return found / math.sqrt(asked.shape[-1])

    def averages(self, values: Tensor, mask: Tensor, times: Tensor, queries: Tensor) -> Tensor:
        """What each head sees of each feature at each query: [B, heads, Q, features].

        Args:
            values: [B, L, features].
            mask: Bool [B, L, features], or [B, L, 1].
            times: Embedded times of the observations [B, L, time_width].
            queries: Embedded times that are asked for [Q, time_width].
        """
        return time_attention(self.scores(queries, times), values, mask, self.dropout)

    def forward(self, values: Tensor, mask: Tensor, times: Tensor, queries: Tensor) -> Tensor:
        """[B, Q, width]; arguments as :meth:`averages`."""
        found = self.averages(values, mask, times, queries)
        if self.with_mask:
            ever = mask.any(dim=1)[:, None, None, :].to(found.dtype)
            found = torch.cat([found, ever.expand_as(found)], dim=-1)
        return self.out(found.transpose(1, 2).flatten(2))
