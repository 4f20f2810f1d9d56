"""A masked language model behind a template: from a text to the state at the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.language.template import Template

Init = Literal["uniform", "vocabulary"]
# OpenPrompt's range for soft tokens without words.
RANGE = 0.5


class PromptTokenizer:
    """Puts texts into a template; called as a tokenizer is.

    Args:
        template: What surrounds each text.
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        self.pad_token_id = template.tokenizer.pad_token_id

    def __call__(
        self,
        texts: Sequence[str],
        *,
        truncation: bool = False,
        max_length: int | None = None,
        padding: bool = False,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> dict[str, Any]:
        """Lists of `input_ids`, `attention_mask`, `slots` and `mask_at`, or padded tensors."""
        del verbose
        found = self.template.encode(texts, max_length if truncation else None)
        longest = max((len(one.input_ids) for one in found), default=0) if padding else 0
        pad = self.pad_token_id or 0
        encoded: dict[str, Any] = {
            "input_ids": [_padded(one.input_ids, longest, pad) for one in found],
            "attention_mask": [_padded([1] * len(one.input_ids), longest, 0) for one in found],
            "slots": [_padded(one.slots, longest, 0) for one in found],
            "mask_at": [one.mask_at for one in found],
        }
        if return_tensors is None:
            return encoded
        return {key: torch.tensor(values) for key, values in encoded.items()}


def _padded(values: list[int], length: int, pad: int) -> list[int]:
    return values + [pad] * (length - len(values))


class PromptedNetwork(nn.Module):
    """The transformed state at the mask, [B, D].

    Args:
        network: Encoder of a masked language model.
        transform: Its head up to the vocabulary.
        template: Its soft pieces become `prompts` [n, D].
        init: How soft places without words begin.
        seed: Of that.
    """

    def __init__(
        self,
        network: nn.Module,
        transform: nn.Module,
        template: Template,
        *,
        init: Init = "uniform",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.transform = transform
        self.prompts: nn.Parameter | None = None
        if template.soft_ids:
            words: Any = network.get_input_embeddings()  # type: ignore[operator]
            self.prompts = nn.Parameter(initial(template.soft_ids, words.weight, init, seed))

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the language model can recompute its activations."""
        return bool(getattr(self.network, "supports_gradient_checkpointing", False))

    def gradient_checkpointing_enable(self, arguments: dict[str, Any]) -> None:
        """As transformers' method of this name."""
        network: Any = self.network
        network.gradient_checkpointing_enable(arguments)

    def train(self, mode: bool = True) -> PromptedNetwork:
        """Training mode; a frozen language model stays without dropout."""
        super().train(mode)
        if not any(p.requires_grad for p in self.network.parameters()):
            self.network.eval()
            self.transform.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        slots: Tensor | None = None,
        mask_at: Tensor | None = None,
    ) -> Tensor:
        """States [B, D] of token ids [B, L].

        Args:
            input_ids: Tokens.
            attention_mask: 1 where there is one.
            slots: 1 + the row of `prompts` that stands in for a token; 0 for none.
            mask_at: Position of the mask [B]; None for the first.
        """
        words: Any = self.network.get_input_embeddings()  # type: ignore[operator]
        embedded = words(input_ids)
        if slots is not None and self.prompts is not None:
            # Not by indexing: its backward pass adds up in whatever order threads come.
            soft = functional.embedding((slots - 1).clamp_min(0), self.prompts.to(embedded.dtype))
            embedded = torch.where((slots > 0).unsqueeze(-1), soft, embedded)
        hidden = self.network(
            inputs_embeds=embedded, attention_mask=attention_mask
        ).last_hidden_state
        if mask_at is None:
            mask_at = input_ids.new_zeros(len(input_ids))
        state = hidden[torch.arange(len(hidden), device=hidden.device), mask_at]
        return self.transform(state)


def initial(ids: Sequence[int | None], weight: Tensor, init: Init, seed: int) -> Tensor:
    """First values [n, D] of soft vectors: those of their words, or without words as `init` says.

    Args:
        ids: The word piece of each, None without.
        weight: Embeddings of the vocabulary [V, D].
        init: `uniform` between -0.5 and 0.5, or the first rows of the `vocabulary`.
        seed: Of `uniform`.
    """
    draw = torch.Generator().manual_seed(seed)
    rows, blanks = [], 0
    for token in ids:
        if token is not None:
            rows.append(weight[token].detach().clone())
        elif init == "vocabulary":
            rows.append(weight[blanks].detach().clone())
            blanks += 1
        else:
            drawn = torch.rand(weight.shape[1], generator=draw) * 2 * RANGE - RANGE
            rows.append(drawn.to(weight))
    return torch.stack(rows)
