"""Pooled features of several depths of a backbone: what linear probes are read from.

After Baharoon et al., 2023, arXiv 2312.02366, and the evaluation of DINOv2: class tokens of the last
blocks, and the mean patch token of the last one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from galenic.core.prediction import evaluating
from galenic.models.anatomy import anatomy
from galenic.models.backbone import Backbone
from galenic.models.maps import find, passed
from galenic.pipeline.encoder import PooledEncoder

Array = np.ndarray[Any, np.dtype[Any]]


class LevelEncoder(PooledEncoder):
    """The pooled feature of each of the last blocks, and the mean token of the last one.

    Each block is pooled as the network's authors pool the last, behind the final norm where the
    network has one; a map is averaged. Features of the slices of a volume are averaged.

    Args:
        backbone: Frozen.
        count: Blocks, or resolutions of a network that steps down.

    Attributes:
        widths: Of each block's feature, the last block last, and of the mean token.
        place: Name of these features, for caches.
    """

    def __init__(self, backbone: Backbone, count: int) -> None:
        super().__init__(backbone)
        self.places = find(backbone, count) if count > 1 else ()
        self.norm = _final_norm(backbone)
        self.place = "levels " + " ".join(self.places)
        with evaluating(backbone), torch.no_grad():
            self.widths = [part.shape[-1] for part in self._parts(backbone.example())]

    def forward(  # type: ignore[override]
        self, features: Tensor | None = None, **inputs: Tensor
    ) -> Tensor:
        """Features [B, all widths].

        Args:
            features: Computed ahead, given back as they are.
            **inputs: What the backbone takes.
        """
        if features is not None:
            return features
        key = self.backbone.inputs.key
        pixels = inputs.get(key)
        if self.backbone.inputs.form != "image" or pixels is None or pixels.ndim != 5:
            return torch.cat(self._parts(inputs), dim=1)
        parts = self._parts({key: pixels.flatten(0, 1)})
        return torch.cat(parts, dim=1).unflatten(0, pixels.shape[:2]).mean(dim=1)

    def pack(self, inputs: dict[str, Tensor]) -> list[Array]:
        """Features [all widths] of each sample of a batch."""
        return list(self(**inputs).float().cpu().numpy())

    def columns(self, blocks: int, average: bool) -> list[int]:
        """Places of the features of the last `blocks` blocks, and of the mean token if asked."""
        ends = np.cumsum([0, *self.widths]).tolist()
        found = list(range(ends[-2 - blocks], ends[-2]))
        return found + list(range(ends[-2], ends[-1])) if average else found

    def _parts(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        outputs, features = passed(self.backbone, self.places, inputs)
        mask = inputs.get("attention_mask")
        parts = [self._pooled(outputs[name], mask) for name in self.places]
        parts.append(features.pooled)
        if features.tokens is None:
            return [*parts, features.pooled]
        inner = features.tokens[:, self.backbone.prefix_tokens :]
        if mask is None:
            return [*parts, inner.mean(dim=1)]
        keep = mask.unsqueeze(-1).to(inner.dtype)
        return [*parts, (inner * keep).sum(dim=1) / keep.sum(dim=1).clamp_min(1e-9)]

    def _pooled(self, output: Any, mask: Tensor | None) -> Tensor:
        state = output[0] if isinstance(output, tuple) else output
        if state.ndim > 3:
            return state.flatten(2).mean(dim=2)
        network = self.backbone.network
        if self.norm is not None:
            state = network.get_submodule(self.norm)(state)
        return self.backbone.pool_tokens(state, mask)


def _final_norm(backbone: Backbone) -> str | None:
    """The norm behind the last block of a network of blocks."""
    found = anatomy(backbone.network)
    if found.family != "transformer" or not found.norms or not found.blocks:
        return None
    last = found.norms[-1]
    inside = any(last.startswith(f"{block}.") for block in found.blocks)
    names = [name for name, _ in backbone.network.named_modules()]
    behind = names.index(last) > names.index(found.blocks[-1])
    return last if behind and not inside else None
