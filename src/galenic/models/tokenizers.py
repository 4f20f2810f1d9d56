"""The tokenizer of a text network, for a method that trains words of its own."""

from __future__ import annotations

from functools import cache
from typing import Any

from galenic.core.errors import BackboneError
from galenic.models.backbone import open_backbone


@cache
def open_tokenizer(spec: str, window: int) -> Any:
    """A tokenizer that cuts at `window` tokens, pads and masks, and knows words from pieces.

    Args:
        spec: Of a text network, as for :func:`galenic.models.backbone.open_backbone`.
        window: Longest text in tokens.

    Raises:
        BackboneError: If the network cannot be opened, or has no such tokenizer.
    """
    tokenizer = open_backbone(spec).tokenizer
    fit = tokenizer is not None and tokenizer.is_fast
    if not fit or tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise BackboneError(
            f"'{spec}' has no tokenizer that masks whole words.",
            expected="a text network with a fast tokenizer and its own ids to mask and to pad",
            next_step="builtin:minilm",
        )
    tokenizer.model_max_length = window
    return tokenizer
