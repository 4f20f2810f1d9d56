"""A masked language model that is told of a picture (Yu et al., MICCAI 2024, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from galenic.objectives.pretraining._masking import noise
from galenic.objectives.pretraining._projection import drawn

if TYPE_CHECKING:
    from galenic.objectives.pretraining.urfound import TextConfig

# Turns the seed of a sample's patches into that of its words, so that neither tells of the other.
APART = 0x5DEECE66D


class ImageConditionedWords(nn.Module):
    """BERT from scratch; a feature of the picture is added to the embedding of every token.

    Args:
        source: Width of the feature.
        config: Sizes, and how much is masked.
        tokenizer: Says how many words there are, and which ids pad and mask.
        seed: Of the first weights.
    """

    def __init__(self, source: int, config: TextConfig, tokenizer: Any, seed: int) -> None:
        from transformers import BertConfig, BertForMaskedLM

        super().__init__()
        self.settings, self.mask_id = config, int(tokenizer.mask_token_id)
        sizes = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            max_position_embeddings=config.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        with drawn(seed, "words"):
            self.project = nn.Linear(source, config.width)
            self.model = BertForMaskedLM(sizes)

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        words: Tensor,
        draws: Tensor,
    ) -> Tensor:
        """Mean cross-entropy of each caption's masked tokens [B]; 0 where none is masked.

        A caption is averaged on its own, so that the loss of a sample depends on it alone.

        Args:
            image: Features [B, source].
            input_ids: [B, L].
            attention_mask: 0 at padding [B, L].
            words: Number of the word that a token is part of [B, L], -1 for none.
            draws: A seed a sample [B].
        """
        masked = self.masked(words, draws)
        states = self.states(image, input_ids.masked_fill(masked, self.mask_id), attention_mask)
        judged = masked if self.settings.loss_on == "masked" else words >= 0
        logits = self.model.cls(states[judged]).float()
        errors = functional.cross_entropy(logits, input_ids[judged], reduction="none")
        sums = errors.new_zeros(len(words)).index_add(0, judged.nonzero()[:, 0], errors)
        return sums / judged.sum(dim=1).clamp_min(1)

    def masked(self, words: Tensor, draws: Tensor) -> Tensor:
        """Which tokens are masked [B, L]: a word in all of its pieces, or in none."""
        chances = noise(draws ^ APART, self.settings.max_tokens)
        return (chances.gather(1, words.clamp_min(0)) < self.settings.mask) & (words >= 0)

    def states(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last states of the tokens [B, L, width], from which `model.cls` names words."""
        from transformers.masking_utils import create_bidirectional_mask

        bert = self.model.bert
        embedded = bert.embeddings(input_ids) + self.project(image).unsqueeze(1)
        attended = create_bidirectional_mask(
            config=bert.config, inputs_embeds=embedded, attention_mask=attention_mask
        )
        found: Tensor = bert.encoder(embedded, attention_mask=attended).last_hidden_state
        return found
