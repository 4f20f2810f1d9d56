"""Votes of neighbours, as targets and as logits."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def votes_of(kind: str, targets: Array, outputs: int, centre: float, spread: float) -> Array:
    """What each training sample votes for [n, outputs]; a continuous one in standard units."""
    if kind == "continuous":
        return ((targets - centre) / spread).astype(np.float32)[:, None]
    if kind == "multilabel":
        return targets.astype(np.float32)
    if kind == "binary":
        return targets.astype(np.float32)[:, None]
    return np.eye(outputs, dtype=np.float32)[targets]


def logits_of(kind: str, votes: Array) -> Array:
    """Shares of votes as logits, so that every arm is scored alike."""
    if kind == "continuous":
        return votes
    if kind in ("binary", "multilabel"):
        clipped = np.clip(votes, 1e-4, 1 - 1e-4)
        return np.log(clipped) - np.log1p(-clipped)
    return np.log(np.clip(votes, 1e-4, None))
