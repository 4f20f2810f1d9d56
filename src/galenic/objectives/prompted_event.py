"""Prediction of what a history is asked (EHRMamba, 2024, multitask prompted fine-tuning)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PromptedEvent(nn.Module):
    """Yes or no, read off the state at the last token, which says what is asked.

    Args:
        network: Causal; its output has `last_hidden_state` [B, L, D].
        width: D.
        dropout: Before the last layer.
    """

    def __init__(self, network: nn.Module, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, 2)
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Log odds of yes, and their loss.

        Args:
            input_ids: [B, L], the token of the task first and last.
            attention_mask: [B, L], 0 at padding.
            labels: [B], 0 or 1.
            **inputs: What else the network takes.

        Returns:
            `logits` [B], and the scalar `loss` where there are labels.
        """
        outputs: Any = self.network(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states = outputs.last_hidden_state
        places = torch.arange(states.shape[1], device=states.device)
        last = (places * attention_mask).argmax(dim=1)
        pair = self.head(states[torch.arange(len(states), device=states.device), last]).float()
        found = {"logits": pair[:, 1] - pair[:, 0]}
        if labels is not None:
            found["loss"] = functional.cross_entropy(pair, labels)
        return found
