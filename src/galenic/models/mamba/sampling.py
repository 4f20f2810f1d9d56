"""The next token: the likeliest, or one drawn from the likely ones."""

from __future__ import annotations

import torch
from torch import Tensor


def nucleus(
    logits: Tensor,
    *,
    temperature: float,
    top_p: float,
    draws: torch.Generator | None = None,
) -> Tensor:
    """Draw from the smallest set of tokens that holds `top_p` of the chance.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020, arXiv 1904.09751.

    Args:
        logits: [B, V]; minus infinity where a token must not be.
        temperature: Divides the logits; 0 takes the likeliest.
        top_p: In (0, 1]; 1 draws from all.
        draws: On the device of `logits`.

    Returns:
        Tokens [B].
    """
    if temperature == 0:
        return logits.argmax(-1)
    chances, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
    # A token stays while those before it hold less than top_p: the likeliest always does.
    if top_p < 1:
        chances = chances.masked_fill(chances.cumsum(-1) - chances >= top_p, 0)
    drawn = torch.multinomial(chances, 1, generator=draws)
    return order.gather(-1, drawn).squeeze(-1)
