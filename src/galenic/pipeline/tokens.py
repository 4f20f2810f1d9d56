"""All states that a backbone gives of a sample, for what attends to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from galenic.models.backbone import Backbone
from galenic.pipeline.encoder import PooledEncoder


def states_of(backbone: Backbone, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Last states of a batch, and which of them are no padding.

    Args:
        backbone: The network.
        batch: What it takes.

    Returns:
        [B, n, D]: its tokens or the places of its map; the slices of a volume that it reads one
        by one; one state where it gives no more. And [B, n], or None where all are whole.
    """
    key = backbone.inputs.key
    pixels = batch.get(key)
    if backbone.inputs.form == "image" and pixels is not None and pixels.ndim == 5:
        count, slices = pixels.shape[:2]
        return backbone(**{key: pixels.flatten(0, 1)}).pooled.unflatten(0, (count, slices)), None
    features = backbone(**batch)
    if features.tokens is None:
        return features.pooled.unsqueeze(1), None
    mask = batch.get("attention_mask")
    fits = mask is not None and mask.shape == features.tokens.shape[:2]
    return features.tokens, mask if fits else None


class TokenEncoder(PooledEncoder):
    """The states of a backbone, from raw inputs or from what was computed ahead.

    Attributes:
        fingerprint: Of the backbone, as it was opened.
        width: Of its states.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.fingerprint = backbone.fingerprint
        training = backbone.training
        backbone.eval()
        with torch.no_grad():
            self.width = states_of(backbone, backbone.example())[0].shape[-1]
        backbone.train(training)

    def forward(  # type: ignore[override]
        self, tokens: Tensor | None = None, mask: Tensor | None = None, **inputs: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As :func:`states_of`.

        Args:
            tokens: States [B, n, D] computed ahead, given back as they are.
            mask: Of these [B, n].
            **inputs: What the backbone takes.
        """
        if tokens is not None:
            return tokens, mask
        return states_of(self.backbone, inputs)


class TableEncoder(TokenEncoder):
    """A self-normalising network on the columns of a table, as the paper has it for tables.

    Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017. Columns that are
    normalised against each other without it would lose what they have in common.

    Args:
        backbone: Gives the columns.
        width: Of both layers.
        dropout: Alpha dropout after each.
    """

    def __init__(self, backbone: Backbone, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__(backbone)
        sizes = (self.width, width, width)
        layers: list[nn.Module] = []
        for inner, outer in zip(sizes[:-1], sizes[1:], strict=True):
            linear = nn.Linear(inner, outer)
            nn.init.normal_(linear.weight, std=inner**-0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.SELU(), nn.AlphaDropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.width = width

    def forward(  # type: ignore[override]
        self, tokens: Tensor | None = None, mask: Tensor | None = None, **inputs: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As :class:`TokenEncoder`, one state a sample."""
        states, mask = super().forward(tokens, mask, **inputs)
        return self.layers(states), mask
