"""Prediction of the next token of a history (EHRMamba, 2024, pre-training)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Tokens whose logits are held at once, and then made again in the backward pass: over a large
# vocabulary they outweigh the network.
AT_ONCE = 1024


class NextEvent(nn.Module):
    """Cross-entropy of each token given those before it; padding is neither read nor predicted.

    Args:
        network: Causal; its output has `last_hidden_state` [B, L, D].
        decoder: To the vocabulary; tied to the embeddings of `network` where it shares them.
    """

    def __init__(self, network: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.decoder = decoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """Mean loss over the tokens that follow a token; only these pass the decoder.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L], 0 at padding; None where there is none.
            **inputs: What else the network takes.

        Returns:
            `loss`, a scalar, whose exponential is the perplexity; and of each history [B] the sum
            `nll` over its tokens, how many they are (`tokens`), and how many were the likeliest
            (`hits`).
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        outputs: Any = self.network(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        valid = attention_mask.bool()
        follows = valid[:, 1:] & valid[:, :-1]
        states = outputs.last_hidden_state[:, :-1][follows]
        targets = input_ids[:, 1:][follows]
        pieces = zip(states.split(AT_ONCE), targets.split(AT_ONCE), strict=True)
        judge: Any = self._judge
        if len(states) > AT_ONCE:
            judge = partial(checkpoint, judge, use_reentrant=False)
        judged = [judge(*piece) for piece in pieces]
        losses, hits = (torch.cat(part) for part in zip(*judged, strict=True))
        found = {"loss": losses.sum() / follows.sum().clamp_min(1), "tokens": follows.sum(1)}
        with torch.no_grad():
            history = follows.nonzero()[:, 0]
            for name, values in (("nll", losses), ("hits", hits)):
                found[name] = values.new_zeros(len(follows)).index_add(0, history, values)
        return found

    def _judge(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each token [N], and 1 where it was the likeliest."""
        logits = self.decoder(states).float()
        losses = functional.cross_entropy(logits, targets, reduction="none")
        return losses, (logits.detach().argmax(-1) == targets).float()
