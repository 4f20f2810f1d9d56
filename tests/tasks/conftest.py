"""Fixtures that several tasks share."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from galenic.models.backbone import open_backbone


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text network of one layer, with the tokenizer of another."""
    folder = tmp_path_factory.mktemp("text")
    minilm = open_backbone("builtin:minilm")
    config = BertConfig(
        vocab_size=minilm.network.config.vocab_size, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm.tokenizer.name_or_path).save_pretrained(folder)
    return str(folder)
