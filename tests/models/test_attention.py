"""A text gets the same numbers, to the last bit, whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModel

from galenic.models.attention import even
from galenic.models.backbone import Backbone, open_backbone

LONGEST = 70


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    return open_backbone("builtin:minilm").eval()


def batch(lengths: list[int], width: int) -> dict[str, Tensor]:
    """Texts of the given lengths, padded to `width`; a text depends on its length alone."""
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        draw = torch.Generator().manual_seed(length)
        ids[row, :length] = torch.randint(1000, 30_000, (length,), generator=draw)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(4, LONGEST - 30), min_size=1, max_size=6),
    wider=st.integers(0, 30),
)
def test_a_text_alone_and_among_others_is_the_same(
    minilm: Backbone, lengths: list[int], wider: int
) -> None:
    """Tokens and pooled features, bit for bit, for any company and any padding."""
    together = batch(lengths, max(lengths) + wider)
    with torch.inference_mode():
        said = minilm(**together)
        for row, length in enumerate(lengths):
            alone = minilm(**batch([length], length))
            assert torch.equal(alone.tokens[0], said.tokens[row, :length])
            assert torch.equal(alone.pooled[0], said.pooled[row])


def test_the_numbers_are_those_of_the_kernel(minilm: Backbone) -> None:
    """What changes is rounding: eager attention says the same to 1e-5."""
    inputs = batch([5, 23, 40], 41)
    config = minilm.network.config
    name = config._attn_implementation
    with torch.inference_mode():
        ours = minilm(**inputs).pooled
        config._attn_implementation = "eager"
        eager = minilm(**inputs).pooled
    config._attn_implementation = name
    torch.testing.assert_close(ours, eager, rtol=0, atol=1e-5)


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 200}
FAMILIES: dict[str, dict[str, int]] = {
    "bert": {**SMALL, "intermediate_size": 128},
    "modernbert": {**SMALL, "intermediate_size": 128, "local_attention": 8, "pad_token_id": 0},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 200},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200},
    "llama": {**SMALL, "intermediate_size": 128, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_mask_of_a_family_is_kept(family: str) -> None:
    """Both ways, causal, in windows, with shared heads: what was seen before is seen now."""
    torch.manual_seed(0)
    network = AutoModel.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    lengths = [13, 21, 33]

    def said(width: int) -> list[Tensor]:
        inputs = batch(lengths, width)
        inputs["input_ids"] %= 200
        with torch.inference_mode():
            found = network(**inputs).last_hidden_state
        return [row[:length] for row, length in zip(found, lengths, strict=True)]

    before = said(33)
    even(network)
    after, wider = said(33), said(40)
    for old, new, other in zip(before, after, wider, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=2e-6)
        assert torch.equal(new, other)
