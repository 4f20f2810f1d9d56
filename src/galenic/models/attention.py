"""Attention that gives a text the same numbers, to the last bit, whatever stands beside it.

The kernel of `scaled_dot_product_attention` for processors goes through keys by vector registers and
through queries by blocks, and rounds what is left over differently. How much is left over depends on
the padding, that is on the longest text of the batch: a network would say something slightly else
about a patient in other company, and a state that was computed ahead would not be that of the
training step. Here nothing is left over. Only queries, keys and values are padded for it, inside
attention, which is a small part of a block; blocks that are being trained are left as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "galenic_even"
# Floats in the widest vector register of a processor (AVX-512).
LANES = 16


def even(network: nn.Module) -> None:
    """Let a transformer that uses `sdpa` attend so; leave every other as it is."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config: Any = network.config
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` [B, h, N, c] over `key` and `value` [B, h, M, c]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    # Without a mask every text is of one length, and a causal kernel looks no further.
    kept = attention_mask is None and causal
    kept = kept or module.training or options.get("position_bias") is not None
    if kept or key.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    queries, keys = query.shape[-2], key.shape[-2]
    if attention_mask is None:
        attention_mask = torch.ones(1, 1, 1, keys, dtype=torch.bool)
    switch = attention_mask.dtype is torch.bool
    mask = _longer(attention_mask, -1, keys, value=False if switch else -torch.inf)
    if mask.shape[-2] > 1:
        # A row that sees nothing would be NaN.
        mask = _longer(mask, -2, queries, value=True if switch else 0.0)
    query, key, value = (_longer(states, -2, states.shape[-2]) for states in (query, key, value))
    found, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
    return found[:, :queries], None


def _longer(states: Tensor, dim: int, length: int, value: float = 0.0) -> Tensor:
    """With as much of `value` at the end of `dim` as makes `length` a whole number of registers."""
    short = -length % LANES
    if not short:
        return states
    return F.pad(states, (0, 0) * (-1 - dim) + (0, short), value=value)
