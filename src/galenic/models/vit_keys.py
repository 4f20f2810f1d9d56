"""Names of a vision transformer's tensors: transformers' `ViTModel` and timm's ViT."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from galenic.core.errors import WeightsError

# transformers' name, timm's name.
_OUTSIDE = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("layernorm", "norm"),
)
_INSIDE = (
    ("layernorm_before", "norm1"),
    ("attention.o_proj", "attn.proj"),
    ("layernorm_after", "norm2"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
)
_PARTS = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_FUSED = "attn.qkv"


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `ViTModel` under timm's names, with queries, keys and values in one layer.

    Args:
        state: All of it; a pooler, which timm does not have, is left out.

    Raises:
        WeightsError: If a name belongs to no `ViTModel`.
    """
    found: dict[str, Tensor] = {}
    fused: dict[str, list[Tensor]] = {}
    # The three parts of a layer stand in the order of `_PARTS`, as the module defines them.
    for name, tensor in state.items():
        if name.startswith("pooler."):
            continue
        number, inner, leaf = _parted(name, "layers")
        if inner in _PARTS:
            fused.setdefault(f"blocks.{number}.{_FUSED}.{leaf}", []).append(tensor)
        else:
            found[_renamed(name, number, inner, leaf, "blocks")] = tensor
    return found | {name: torch.cat(parts) for name, parts in fused.items()}


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`to_timm` was given.

    Raises:
        WeightsError: If a name belongs to no plain ViT of timm.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        number, inner, leaf = _parted(name, "blocks")
        if inner == _FUSED:
            names = (f"layers.{number}.{part}.{leaf}" for part in _PARTS)
            parts = (part.clone() for part in tensor.chunk(3))
            found |= dict(zip(names, parts, strict=True))
        else:
            found[_renamed(name, number, inner, leaf, "layers")] = tensor
    return found


def _parted(name: str, chain: str) -> tuple[str, str, str]:
    """Number of the block, layer within it, and tensor of the layer; '' for what there is not."""
    match = re.fullmatch(rf"(?:{chain}\.(\d+)\.)?(.+?)(?:\.(weight|bias))?", name)
    assert match is not None
    return match[1] or "", match[2], match[3] or ""


def _renamed(name: str, number: str, inner: str, leaf: str, chain: str) -> str:
    to = 1 if chain == "blocks" else 0
    other = {pair[1 - to]: pair[to] for pair in (_INSIDE if number else _OUTSIDE)}.get(inner)
    if other is None:
        raise WeightsError(
            f"'{name}' is no tensor of a plain vision transformer.",
            expected="the layout of transformers' ViTModel, or of timm's without its head",
        )
    return ".".join(part for part in (number and f"{chain}.{number}", other, leaf) if part)
