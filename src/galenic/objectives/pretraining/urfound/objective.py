"""Masked pictures and masked words together (Yu et al., MICCAI 2024, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from galenic.objectives.pretraining._autoencoder import MaskedAutoencoder
from galenic.objectives.pretraining._vit import PatchEncoder
from galenic.objectives.pretraining.urfound.words import ImageConditionedWords

if TYPE_CHECKING:
    from galenic.objectives.pretraining.urfound import Config


class KnowledgeMasked(MaskedAutoencoder):
    """The sum of two losses: of hidden patches at a finer scale, and of masked words.

    Args:
        key: Name of the pixels in a batch.
        encoder: Of visible patches.
        config: Of the method, with its text branch.
        seed: Of the first weights of decoder and text branch.
        tokenizer: Of the captions.
    """

    def __init__(
        self, key: str, encoder: PatchEncoder, config: Config, seed: int, tokenizer: Any
    ) -> None:
        super().__init__(key, encoder, config, seed, config.target_scale)
        assert config.text is not None
        self.words = ImageConditionedWords(encoder.width, config.text, tokenizer, seed)

    def forward(self, draws: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            draws: A seed a sample [B], which both masks are drawn from.
            **inputs: Pixels [B, (S,) C, H, W] at the finer scale; and of the captions [B, L]
                `input_ids`, `attention_mask` and `words`, the number of each token's word.

        Returns:
            `loss`: scalar; `losses`: [B], the sum of `image_loss` and `text_loss` [B].
        """
        samples = len(draws)
        patches, mask = self.masked(inputs[self.key], draws)
        tokens = self.tokens(patches, mask)
        image = self.errors(self.decoder(tokens, mask), patches, mask, samples)
        text = self.words(
            self.seen(tokens, samples),
            inputs["input_ids"],
            inputs["attention_mask"],
            inputs["words"],
            draws,
        )
        losses = image + text
        return {"loss": losses.mean(), "losses": losses, "image_loss": image, "text_loss": text}

    def seen(self, tokens: Tensor, samples: int) -> Tensor:
        """Mean [B, width] of the visible patches' tokens, of all slices where there are several."""
        patches = tokens[:, self.encoder.prefix :]
        return patches.mean(dim=1).unflatten(0, (samples, -1)).mean(dim=1)
