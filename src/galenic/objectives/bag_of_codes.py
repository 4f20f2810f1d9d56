"""Logistic regression on how often each token is there: what a network must be better than."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BagOfCodes(nn.Module):
    """Log odds of yes from the logarithm of one plus the counts.

    Args:
        tokens: Of the vocabulary.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens))
        self.bias = nn.Parameter(torch.zeros(()))

    def counts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features [B, V] of tokens [B, L]; padding counts for nothing."""
        found = self.weight.new_zeros(len(input_ids), len(self.weight))
        return found.scatter_add(1, input_ids, attention_mask.to(found.dtype)).log1p()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> dict[str, Tensor]:
        """`logits` [B]; the order of the tokens and all other streams are not looked at."""
        return {"logits": self.counts(input_ids, attention_mask) @ self.weight + self.bias}
