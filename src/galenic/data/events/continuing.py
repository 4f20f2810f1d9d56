"""What goes beside a token that a network wrote: streams that follow from the token itself."""

from __future__ import annotations

import numpy as np

from galenic.data.events.tokens import Array, History, segment
from galenic.data.events.visits import gap_days
from galenic.data.events.vocabulary import Kind, Vocabulary

DAYS_OF_YEAR = 365.25
_EVENTS = (Kind.LAB, Kind.MED, Kind.PROC)
# What may follow what: the grammar of every encoded history.
FOLLOWS: dict[Kind, tuple[Kind, ...]] = {
    Kind.CLS: (Kind.VS,),
    **dict.fromkeys((Kind.VS, *_EVENTS), (*_EVENTS, Kind.VE)),
    Kind.VE: (Kind.REG,),
    Kind.REG: (Kind.GAP,),
    Kind.GAP: (Kind.VS,),
}


class Continuation:
    """Goes beside a history that grows token by token.

    A gap moves the start of the next visit on by what it stands for. The [VS] after it has the
    next number, the other segment, and the age of then. How long a visit takes is not written.

    Args:
        history: That is gone on from.
        vocabulary: Of its tokens.
    """

    def __init__(self, history: History, vocabulary: Vocabulary) -> None:
        self._kinds = np.asarray(vocabulary.kinds)
        self._kind = Kind(history["types"][-1])
        self._visit, self._weeks = (int(history[name][-1]) for name in ("positions", "times"))
        self._first_weeks, self._first_age = self._weeks, int(history["ages"].max())
        self._days = 0.0

    @property
    def allowed(self) -> Array:
        """Whether each token of the vocabulary may come next [V]; never [PAD], [UNK], a prompt."""
        return np.isin(self._kinds, FOLLOWS[self._kind])

    def add(self, token: int) -> dict[str, int]:
        """Streams of the next token, which is `token`."""
        self._kind = Kind(self._kinds[token])
        if self._kind == Kind.GAP:
            self._days += gap_days(token)
        elif self._kind == Kind.VS:
            self._visit += 1
            self._weeks = self._first_weeks + int(self._days // 7)
        inside = self._kind != Kind.GAP
        return {
            "input_ids": token,
            "types": int(self._kind),
            "ages": (self._first_age + int(self._days // DAYS_OF_YEAR)) * inside,
            "times": self._weeks,
            "segments": segment(self._visit) * inside,
            "positions": self._visit,
        }
