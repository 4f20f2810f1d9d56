"""Boosted trees as tensors: a head that stands on features, loads from safetensors and exports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Forest:
    """All trees of all outputs, their nodes behind one another.

    Attributes:
        feature: Feature that a node asks for, int64 [M].
        threshold: At most this goes left, float64 [M].
        unknown_left: Whether NaN goes left, bool [M].
        left: Node to go on with, int64 [M]; a leaf is its own.
        right: The same to the right.
        value: What a leaf adds, float64 [M].
        root: First node of each tree, int64 [T].
        output: Logit that each tree adds to, int64 [T].
        baseline: Logits before any tree, float64 [outputs].
    """

    feature: Tensor
    threshold: Tensor
    unknown_left: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    root: Tensor
    output: Tensor
    baseline: Tensor

    @property
    def depth(self) -> int:
        """Questions on the longest way from a root to a leaf."""
        steps, at = 0, self.root.unique()
        while len(at):
            at = at[self.left[at] != at]
            at = torch.cat([self.left[at], self.right[at]]).unique()
            steps += bool(len(at))
        return steps

    def logits(self, features: Tensor, depth: int) -> Tensor:
        """Logits [B, outputs] of features [B, width] after at most `depth` questions a tree."""
        # As scikit-learn compares: thresholds lie between values by less than float32 tells.
        asked = features.double()
        at = self.root.expand(len(asked), -1)
        for _ in range(depth):
            found = asked.gather(1, self.feature[at])
            goes_left = torch.where(
                found.isnan(), self.unknown_left[at], found <= self.threshold[at]
            )
            at = torch.where(goes_left, self.left[at], self.right[at])
        logits = self.baseline.expand(len(asked), -1)
        return logits.index_add(1, self.output, self.value[at]).to(features.dtype)


PARTS = tuple(field.name for field in fields(Forest))


class TreesHead(nn.Module):
    """The sum of many small trees (Friedman, Annals of Statistics 2001); nothing trains by gradient.

    Args:
        forest: Grown by :func:`galenic.pipeline.boosting.grow`.
    """

    def __init__(self, forest: Forest) -> None:
        super().__init__()
        self._plant(forest)

    def _plant(self, forest: Forest) -> None:
        for name in PARTS:
            self.register_buffer(name, getattr(forest, name))
        self.depth = forest.depth

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, outputs] of features [B, width], of which some may be NaN."""
        forest = Forest(**{name: self.get_buffer(name) for name in PARTS})
        return forest.logits(features, self.depth)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # Another number of nodes is another forest, not a fault.
        if all(prefix + name in state_dict for name in PARTS):
            self._plant(Forest(**{name: state_dict[prefix + name] for name in PARTS}))
        super()._load_from_state_dict(state_dict, prefix, *rest)
