"""AntiBERTy: BERT over the residues of antibodies, 8 layers, width 512, 26 M (Ruffolo et al., 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galenic.core.inputs import InputSpec
from galenic.models.backbone import Opened
from galenic.models.builtin._package import package_folder

FOLDER = "trained_models/AntiBERTy_md_smooth"
VOCABULARY = "trained_models/vocab.txt"


def build(*, random: bool = False, channels: int | None = None) -> Opened:
    """The encoder of package antiberty; reads sequences of one-letter residues, `_` is masked."""
    del channels
    from transformers import BertConfig, BertModel

    folder = package_folder("antiberty", "proteins")
    config = BertConfig.from_pretrained(folder / FOLDER)
    network = BertModel(config, add_pooling_layer=False)
    if not random:
        weights = _weights(folder)
        wanted = network.state_dict()
        network.load_state_dict({name: weights[f"bert.{name}"] for name in wanted})
    window = int(config.max_position_embeddings)
    spec = InputSpec("input_ids", "tokens", channels=1, max_length=window)
    return Opened(network.eval(), spec, tokenizer(folder / VOCABULARY, window), pool="mean")


def masked_head() -> dict[str, Tensor]:
    """The head that names masked residues, under the names of `BertForMaskedLM`."""
    weights = _weights(package_folder("antiberty", "proteins"))
    return {name: value for name, value in weights.items() if name.startswith("cls.predictions.")}


def _weights(folder: Path) -> dict[str, Tensor]:
    path = folder / FOLDER / "pytorch_model.bin"
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def tokenizer(vocabulary: Path, window: int) -> Any:
    """One token a residue (capital letter); what is no residue is `[UNK]`."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary.read_text(encoding="utf-8").split()
    ids = {word: place for place, word in enumerate(words)}
    found = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    found.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\s"), ""),
            normalizers.Replace("_", "[MASK]"),
        ]
    )
    found.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[MASK\]|."), "isolated")
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(w, ids[w]) for w in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        model_max_length=window,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
