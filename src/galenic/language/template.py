"""Cloze templates: words around a text and a mask, some of them soft.

    {text} [soft:This] patient should [soft:go to] {mask}.

`{text}` is the sample, `{mask}` the place to be filled. `[soft:words]` are vectors that train,
one a word piece, beginning as the embeddings of these pieces; `[soft*20]` are twenty without
words. A template is read by this grammar and never evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from galenic.core.errors import ConfigError

Kind = Literal["words", "text", "mask", "soft", "blank"]
_MARK = re.compile(r"\s*(\{text\}|\{mask\}|\[soft:[^\]]*\]|\[soft\*\d+\])")
_STRANGE = re.compile(r"\{[^}]*\}|\[soft[^\]]*\]?")
EXAMPLE = "{text} [soft:This is about] {mask}."


@dataclass(frozen=True)
class Piece:
    """A part of a template.

    Attributes:
        kind: What it is.
        words: Of `words` and `soft`, with the space before them.
        count: Of `blank`.
    """

    kind: Kind
    words: str = ""
    count: int = 0


@dataclass(frozen=True)
class Encoded:
    """One sample in a template.

    Attributes:
        input_ids: Token ids; a soft place holds the id it began as.
        slots: 0 for an ordinary token, else 1 + the row of the table of soft vectors.
        mask_at: Position of the mask.
    """

    input_ids: list[int]
    slots: list[int]
    mask_at: int


def parse_template(text: str) -> tuple[Piece, ...]:
    """The pieces of a template.

    Raises:
        ConfigError: If `{text}` or `{mask}` is not there exactly once, or a bracket is unknown.
    """
    pieces: list[Piece] = []
    end = 0
    for found in _MARK.finditer(text):
        _words(pieces, text[end : found.start()])
        pieces.append(_special(found.group(1), text[found.start() : found.start(1)]))
        end = found.end()
    _words(pieces, text[end:])
    for kind in ("text", "mask"):
        count = sum(piece.kind == kind for piece in pieces)
        if count != 1:
            raise ConfigError(
                f"The template has {count} {{{kind}}}.",
                where=f"template '{text}'",
                expected=f"one {{text}} and one {{mask}}, as in '{EXAMPLE}'",
            )
    return tuple(pieces)


def _words(pieces: list[Piece], words: str) -> None:
    strange = _STRANGE.search(words)
    if strange:
        raise ConfigError(
            f"The template does not know '{strange.group()}'.",
            expected="{text}, {mask}, [soft:words] or [soft*20]",
        )
    if words.strip():
        pieces.append(Piece("words", words))


def _special(mark: str, space: str) -> Piece:
    if mark in ("{text}", "{mask}"):
        return Piece("text" if mark == "{text}" else "mask")
    inner = mark[len("[soft") : -1]
    if inner.startswith("*"):
        if int(inner[1:]) == 0:
            raise ConfigError(f"'{mark}' has no vector.", expected="[soft*20]")
        return Piece("blank", count=int(inner[1:]))
    if not inner[1:].strip():
        raise ConfigError(f"'{mark}' has no words.", expected="[soft:words], or [soft*20]")
    return Piece("soft", space + inner[1:].strip())


class Template:
    """A template in the vocabulary of one tokenizer.

    Args:
        text: The template.
        tokenizer: Of a masked language model.

    Raises:
        ConfigError: If the template is wrong, or the tokenizer has no mask.
    """

    def __init__(self, text: str, tokenizer: Any) -> None:
        if tokenizer.mask_token_id is None:
            raise ConfigError(
                "The tokenizer has no mask token: this is no masked language model.",
                next_step="Take a BERT-like backbone: backbone=builtin:minilm",
            )
        self.text = text
        self.tokenizer = tokenizer
        self.pieces = parse_template(text)
        before, after = _specials(tokenizer)
        self._before: list[tuple[int, int]] = [(token, 0) for token in before]
        self._after: list[tuple[int, int]] = []
        self.soft_ids: list[int | None] = []
        self._mask_before = False
        place = self._before
        for piece in self.pieces:
            if piece.kind == "text":
                place = self._after
            elif piece.kind == "mask":
                self._mask_before = place is self._before
                place.append((tokenizer.mask_token_id, 0))
            else:
                place.extend(self._tokens(piece))
        self._after.extend((token, 0) for token in after)

    def _tokens(self, piece: Piece) -> list[tuple[int, int]]:
        if piece.kind == "blank":
            ids: list[int | None] = [None] * piece.count
        else:
            ids = list(self.tokenizer(piece.words, add_special_tokens=False)["input_ids"])
            if self.tokenizer.mask_token_id in ids:
                raise ConfigError(
                    f"The template has '{self.tokenizer.mask_token}' among its words.",
                    where=f"template '{self.text}'",
                    expected=f"one {{mask}}, as in '{EXAMPLE}'",
                )
        if piece.kind == "words":
            return [(token, 0) for token in ids if token is not None]
        self.soft_ids.extend(ids)
        first = len(self.soft_ids) - len(ids) + 1
        filler = self.tokenizer.unk_token_id or 0
        return [(filler if t is None else t, first + place) for place, t in enumerate(ids)]

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[Encoded]:
        """Texts in the template; a text that is too long is cut at its end.

        Args:
            texts: The samples. A mask token in one is taken as an unknown word.
            max_length: Longest result in tokens; None for no limit.

        Raises:
            ConfigError: If the template alone does not leave room for a token of text.
        """
        around = len(self._before) + len(self._after)
        room = None if max_length is None else max_length - around
        if room is not None and room < 1:
            raise ConfigError(
                f"The template takes {around} tokens, and the network reads {max_length}.",
                where=f"template '{self.text}'",
                next_step="Shorten the template.",
            )
        found = self.tokenizer(list(texts), add_special_tokens=False, padding=False, verbose=False)[
            "input_ids"
        ]
        return [self._around(ids[:room]) for ids in found]

    def _around(self, ids: list[int]) -> Encoded:
        mask, unknown = self.tokenizer.mask_token_id, self.tokenizer.unk_token_id or 0
        middle = [(unknown if token == mask else token, 0) for token in ids]
        whole = [*self._before, *middle, *self._after]
        part = self._before if self._mask_before else self._after
        at = [token for token, _ in part].index(mask)
        start = 0 if self._mask_before else len(self._before) + len(middle)
        return Encoded([t for t, _ in whole], [slot for _, slot in whole], start + at)


def _specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]
