"""Masked language modelling (Devlin et al., 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class MaskedLanguage(nn.Module):
    """Cross-entropy of the hidden words.

    Args:
        network: Encoder; its output has `last_hidden_state` [B, L, D].
        transform: Head up to the vocabulary.
        decoder: To the vocabulary; tied to the embeddings of `network` where it shares them.
        penalty: Scalar added to the loss in training, such as a tuner's own term.
    """

    def __init__(
        self,
        network: nn.Module,
        transform: nn.Module,
        decoder: nn.Linear,
        penalty: Callable[[], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.penalty = penalty
        self.network = network
        self.transform = transform
        self.decoder = decoder

    def forward(self, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Loss over the hidden places; only they pass the head.

        Args:
            labels: The hidden words [B, L], -100 where nothing is hidden.
            **inputs: What the network takes.

        Returns:
            `loss`, a scalar.
        """
        outputs: Any = self.network(**inputs)
        hidden = labels != -100
        logits = self.decoder(self.transform(outputs.last_hidden_state[hidden])).float()
        total = functional.cross_entropy(logits, labels[hidden], reduction="sum")
        loss = total / hidden.sum().clamp_min(1)
        if self.training and self.penalty is not None:
            loss = loss + self.penalty()
        return {"loss": loss}
