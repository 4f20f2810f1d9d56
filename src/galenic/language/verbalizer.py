"""Verbalisers: from the state at the mask to the logits of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from galenic.core.errors import ConfigError, nearest

MultiToken = Literal["first", "mean", "error"]
Words = Mapping[str, Sequence[str]]


def label_tokens(
    words: Words, classes: Sequence[str], tokenizer: Any, multi_token: MultiToken = "error"
) -> list[list[list[int]]]:
    """Token ids of every word of every class, in the order of `classes`.

    Args:
        words: Label words by class.
        classes: Names of the classes.
        tokenizer: Of the masked language model.
        multi_token: What a word of several tokens becomes: its first token, all of them (their
            logits are averaged), or an error.

    Raises:
        ConfigError: If a class is unknown or has no word, a word is not in the vocabulary or
            falls into several tokens, or two classes cannot be told apart.
    """
    for name in words:
        if name not in classes:
            raise ConfigError(
                f"There is no class '{name}'. {nearest(name, classes)}".strip(),
                where="verbalizer.words",
                expected=", ".join(classes),
            )
    found = []
    for name in classes:
        listed = list(words.get(name, ()))
        if not listed:
            raise ConfigError(f"Class '{name}' has no label word.", where="verbalizer.words")
        found.append([_tokens(word, tokenizer, multi_token) for word in listed])
    _require_apart(found, classes, tokenizer)
    return found


def _tokens(word: str, tokenizer: Any, multi_token: MultiToken) -> list[int]:
    ids = list(tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"])
    if not ids or tokenizer.unk_token_id in ids:
        raise ConfigError(
            f"The label word '{word}' is {'not in the vocabulary' if ids else 'empty'}.",
            where="verbalizer.words",
            expected="a word that the vocabulary holds",
            next_step="Choose another word.",
        )
    if len(ids) > 1 and multi_token == "error":
        pieces = ", ".join(tokenizer.convert_ids_to_tokens(ids))
        raise ConfigError(
            f"The label word '{word}' falls into {len(ids)} tokens: {pieces}.",
            where="verbalizer.words",
            expected="a word that the vocabulary holds whole",
            next_step="Choose another word, or verbalizer.multi_token=mean",
        )
    return ids[:1] if multi_token == "first" else ids


def _require_apart(found: list[list[list[int]]], classes: Sequence[str], tokenizer: Any) -> None:
    owners: dict[frozenset[tuple[int, ...]], str] = {}
    for name, words in zip(classes, found, strict=True):
        key = frozenset(tuple(word) for word in words)
        if key in owners:
            shown = ", ".join(tokenizer.decode(list(word)).strip() for word in sorted(key))
            raise ConfigError(
                f"Classes '{owners[key]}' and '{name}' have the same label tokens: {shown}.",
                where="verbalizer.words",
                expected="at least one word a class that no other class has",
            )
        owners[key] = name


class ManualVerbalizer(nn.Module):
    """Log-probability of a class's words among all label words, averaged over its words.

    Nothing trains. Adding one number to all logits of the vocabulary changes nothing.

    Args:
        decoder: The last layer of the masked language model.
        tokens: Of :func:`label_tokens`.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor

    def __init__(self, decoder: nn.Linear, tokens: Sequence[Sequence[Sequence[int]]]) -> None:
        super().__init__()
        words = [word for words in tokens for word in words]
        with torch.no_grad():
            rows = torch.stack([decoder.weight[list(word)].mean(0) for word in words])
            bias = decoder.bias if decoder.bias is not None else decoder.weight.new_zeros(1)
            shifts = torch.stack([bias.expand(len(decoder.weight))[list(w)].mean() for w in words])
        mean = torch.zeros(len(tokens), len(words))
        start = 0
        for place, own in enumerate(tokens):
            mean[place, start : start + len(own)] = 1 / len(own)
            start += len(own)
        self.register_buffer("weight", rows.clone())
        self.register_buffer("bias", shifts.clone())
        self.register_buffer("mean", mean)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> ManualVerbalizer:
        """One with the label words of another one's state."""
        counts = (state["mean"] > 0).sum(dim=1).tolist()
        blank = nn.Linear(state["weight"].shape[1], 1)
        made = cls(blank, [[[0]] * count for count in counts])
        made.load_state_dict(dict(state))
        return made

    def forward(self, state: Tensor) -> Tensor:
        """Logits [B, C] of transformed states at the mask [B, D]."""
        logits = nn.functional.linear(state, self.weight, self.bias)
        return logits.log_softmax(-1) @ self.mean.T


class SoftVerbalizer(nn.Module):
    """A vector a class, without bias (WARP; Hambardzumyan et al., 2021).

    Args:
        width: Of the state.
        classes: How many.
        decoder: With `tokens`, vectors begin as the mean of the rows of each class's words.
        tokens: Of :func:`label_tokens`.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        decoder: nn.Linear | None = None,
        tokens: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes, bias=False)
        if decoder is not None and tokens is not None:
            with torch.no_grad():
                for row, words in zip(self.linear.weight, tokens, strict=True):
                    ids = [token for word in words for token in word]
                    row.copy_(decoder.weight[ids].mean(0))

    def forward(self, state: Tensor) -> Tensor:
        """Logits [B, C] of transformed states at the mask [B, D]."""
        return self.linear(state)


class Binary(nn.Module):
    """Two class logits as one: the log-odds of the second.

    Args:
        verbalizer: Gives [B, 2].
    """

    def __init__(self, verbalizer: nn.Module) -> None:
        super().__init__()
        self.verbalizer = verbalizer

    def forward(self, state: Tensor) -> Tensor:
        """Logit [B, 1]."""
        logits = self.verbalizer(state)
        return logits[:, 1:] - logits[:, :1]


def restored(state: Mapping[str, Tensor]) -> nn.Module:
    """The verbaliser that has this state, without the language model that it was made from."""
    inner = "verbalizer."
    if all(name.startswith(inner) for name in state):
        return Binary(restored({name.removeprefix(inner): t for name, t in state.items()}))
    if "linear.weight" not in state:
        return ManualVerbalizer.of(state)
    classes, width = state["linear.weight"].shape
    made = SoftVerbalizer(width, classes)
    made.load_state_dict(dict(state))
    return made
