"""Coded patient histories as input of a Mamba: a code, and the streams that go beside it.

"EHRMamba: Towards Generalizable and Scalable Foundation Models for Electronic Health Records",
2024, arXiv 2405.14567, section on embeddings:

    LN(dropout(tanh(W [E(code); sin(w dt + phi); sin(w' age + phi')])
               + E_type(type) + E_position(visit) + E_segment(segment)))

where dt is the time since the token before. The paper's code has a table of codes of its own
beside the one that its decoder is tied to; here they are one, that of the network, so that its
weights load and its decoder stays tied to what it reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from galenic.core.errors import DataError

# Of the first weights and tables, as the `initializer_range` of transformers' MambaConfig.
SPREAD = 0.1


class Past(NamedTuple):
    """What a history left behind, to go on from.

    Attributes:
        cache: Of the network.
        times: Time stream of the last token [B].
    """

    cache: Any
    times: Tensor


class Read(NamedTuple):
    """What the network made of a history.

    Attributes:
        last_hidden_state: [B, L, width].
        past: Where a cache was asked for.
    """

    last_hidden_state: Tensor
    past: Past | None


class Sinusoid(nn.Module):
    """sin(w t + phi) with learnt rates and phases.

    Args:
        width: Number of waves.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, width)))
        self.phase = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, width)))

    def forward(self, values: Tensor) -> Tensor:
        """[B, L] to [B, L, width], at least in float32: weeks of a life do not fit 16 bits."""
        wide = torch.promote_types(self.rate.dtype, torch.float32)
        return torch.sin(values.to(wide).unsqueeze(-1) * self.rate + self.phase)


class StreamEmbedding(nn.Module):
    """From embedded codes and their streams to what the blocks read.

    Args:
        width: Of the network.
        types: Kinds of token.
        visits: Visits told apart; later ones are all as the last of these.
        segments: Kinds of segment.
        waves: Width of the embeddings of time and of age.
        dropout: Before the norm.
    """

    def __init__(
        self,
        width: int,
        *,
        types: int = 9,
        visits: int = 512,
        segments: int = 3,
        waves: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.times, self.ages = Sinusoid(waves), Sinusoid(waves)
        self.join = nn.Linear(width + 2 * waves, width)
        self.types = nn.Embedding(types, width)
        self.positions = nn.Embedding(visits, width)
        self.segments = nn.Embedding(segments, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        for module in (self.join, self.types, self.positions, self.segments):
            nn.init.normal_(module.weight, std=SPREAD)
        nn.init.zeros_(self.join.bias)

    def forward(
        self,
        codes: Tensor,
        *,
        types: Tensor,
        ages: Tensor,
        times: Tensor,
        segments: Tensor,
        positions: Tensor,
        before: Tensor | None = None,
    ) -> Tensor:
        """Embed a history.

        Args:
            codes: Embedded codes [B, L, width].
            types: Kind of each token [B, L].
            ages: Years [B, L].
            times: Weeks [B, L].
            segments: [B, L].
            positions: Number of the visit [B, L].
            before: Time of the token before the first [B]; None where a history begins.

        Returns:
            [B, L, width].

        Raises:
            DataError: If a stream is not as long as the codes.
        """
        _check(codes, types=types, ages=ages, times=times, segments=segments, positions=positions)
        first = times[:, :1] if before is None else before.unsqueeze(1)
        waves = [self.times(times.diff(dim=1, prepend=first)), self.ages(ages)]
        joined = self.join(torch.cat([codes, *(w.to(codes.dtype) for w in waves)], dim=-1))
        visits = positions.clamp_max(self.positions.num_embeddings - 1)
        tables = self.types(types) + self.positions(visits) + self.segments(segments)
        return self.norm(self.dropout(joined.tanh() + tables))


class EventMamba(nn.Module):
    """A Mamba language model that reads codes with their streams.

    Args:
        network: transformers' `MambaForCausalLM`, accelerated or not.
        streams: Of the width of `network`.
    """

    def __init__(self, network: Any, streams: StreamEmbedding) -> None:
        super().__init__()
        self.network = network
        self.streams = streams

    @property
    def embedding(self) -> nn.Embedding:
        """Of codes."""
        embedding: nn.Embedding = self.network.get_input_embeddings()
        return embedding

    @property
    def decoder(self) -> nn.Module:
        """From hidden states to the vocabulary."""
        decoder: nn.Module = self.network.get_output_embeddings()
        return decoder

    def forward(
        self,
        input_ids: Tensor,
        times: Tensor,
        *,
        attention_mask: Tensor | None = None,
        past: Past | None = None,
        use_cache: bool = False,
        **streams: Tensor,
    ) -> Read:
        """Hidden states of a history, or of how it goes on.

        Args:
            input_ids: Codes [B, L].
            times: Weeks [B, L].
            attention_mask: [B, L], 0 at padding. Padding on the left has the time of the first
                token, so that no time passes between them.
            past: What an earlier part left.
            use_cache: Whether to leave something for a later part.
            **streams: `types`, `ages`, `segments`, `positions`, all [B, L].

        Raises:
            DataError: If a stream is not as long as the codes.
        """
        cache, before = past or (None, None)
        codes = self.embedding(input_ids)
        embedded = self.streams(codes, times=times, before=before, **streams)
        outputs = self.network.base_model(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            cache_params=cache,
            use_cache=use_cache,
        )
        left = Past(outputs.cache_params, times[:, -1]) if use_cache else None
        return Read(outputs.last_hidden_state, left)


def _check(codes: Tensor, **streams: Tensor) -> None:
    shape = tuple(codes.shape[:2])
    for name, stream in streams.items():
        if tuple(stream.shape) != shape:
            raise DataError(
                f"The stream '{name}' has the shape {tuple(stream.shape)}.",
                expected=f"{shape}, as the codes",
                next_step="Cut, pad and batch all streams of a history alike.",
            )
