"""The light decoder of a masked autoencoder, which fills in the hidden patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from galenic.objectives.pretraining._masking import Mask
from galenic.objectives.pretraining._positions import sin_cos

EPSILON = 1e-6


class Block(nn.Module):
    """Pre-norm attention and feed-forward (Dosovitskiy et al., 2021, equations 2 and 3).

    Norms and activations are computed again in the backward pass: they cost next to nothing
    beside the products, and half of the memory.

    Args:
        width: Of a token.
        heads: Of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, last: int | None = None) -> Tensor:
        """Tokens [B, N, width], or the last of them [B, last, width] where no other is asked for."""
        qkv = _again(lambda x: self.qkv(self.norm1(x)), tokens)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if last is not None:
            query, tokens = query[:, :, -last:], tokens[:, -last:]
        attended = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(attended.transpose(1, 2).flatten(2))
        grown = _again(lambda x: self.up(self.norm2(x)), tokens)
        return tokens + _again(lambda x: self.down(functional.gelu(x)), grown)


class Decoder(nn.Module):
    """From tokens of visible patches to the pixels of hidden ones.

    Args:
        source: Width of an encoder token.
        prefix: Tokens before the patches.
        grid: Patches in each dimension.
        values: Numbers of a patch.
        width: Of a token here.
        depth: Blocks.
        heads: Of attention.
        generator: Of the first weights.
    """

    positions: Tensor

    def __init__(
        self,
        source: int,
        prefix: int,
        grid: Sequence[int],
        values: int,
        *,
        width: int,
        depth: int,
        heads: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(source, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.predict = nn.Linear(width, values)
        self.register_buffer("positions", sin_cos(grid, width), persistent=False)
        initialise(self, generator)

    def forward(self, tokens: Tensor, mask: Mask) -> Tensor:
        """Pixels [B, L - k, P * C] of the hidden patches.

        Visible patches come first, hidden ones last: attention knows places by their positions
        alone, so that nothing need be put back in order.

        Args:
            tokens: Of the encoder [B, prefix + k, source].
            mask: Which patches they are of.
        """
        tokens = self.embed(tokens)
        seen = tokens[:, self.prefix :] + self.positions[mask.seen]
        hidden = self.mask_token + self.positions[mask.hidden]
        states = torch.cat([tokens[:, : self.prefix], seen, hidden.to(tokens.dtype)], dim=1)
        count = mask.hidden.shape[1]
        for block in self.blocks[:-1]:
            states = block(states)
        states = self.blocks[-1](states, last=count)
        return self.predict(self.norm(states))


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Weights of linear layers by Glorot, biases zero, mask tokens N(0, 0.02)."""
    for name, parameter in module.named_parameters():
        if name.endswith("mask_token"):
            nn.init.normal_(parameter, std=0.02, generator=generator)
        elif parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def _again(function: Any, *inputs: Tensor) -> Tensor:
    """`function` of `inputs`, of which only these are kept for the backward pass.

    The last product is not repeated: recomputation ends as soon as its inputs are known.
    """
    if not torch.is_grad_enabled():
        found: Tensor = function(*inputs)
        return found
    kept: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return kept
