"""Templates, verbalisers and prompted networks: the invariants of the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from galenic.core.errors import BackboneError, ConfigError
from galenic.language.masked import open_head
from galenic.language.prompted import PromptedNetwork, PromptTokenizer, initial
from galenic.language.template import Template, parse_template
from galenic.language.verbalizer import Binary, ManualVerbalizer, SoftVerbalizer, label_tokens
from galenic.models.backbone import Backbone, Opened, open_backbone

SOFT = "{text} [soft:This] patient should [soft:go to] {mask}."
MANUAL = "{text} This patient should go to {mask}."
NOTES = ["chest pain since two days", "a rash", ""]


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    return open_backbone("builtin:minilm").eval()


def prompted(minilm: Backbone, text: str) -> Backbone:
    template = Template(text, minilm.tokenizer)
    network = PromptedNetwork(minilm.network, nn.Identity(), template)
    return Backbone(
        Opened(network, minilm.inputs, PromptTokenizer(template)), "prompted", "auto"
    ).eval()


def states(backbone: Backbone, texts: list[str] = NOTES) -> torch.Tensor:
    with torch.no_grad():
        return backbone(**backbone.tokenize(texts)).pooled


def test_soft_words_begin_as_the_words(minilm: Backbone) -> None:
    ours, plain = states(prompted(minilm, SOFT)), states(prompted(minilm, MANUAL))
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)


def test_the_state_is_that_of_the_plain_network(minilm: Backbone) -> None:
    """The whole sentence through the tokenizer and the encoder, nothing of ours between."""
    text = MANUAL.replace("{text}", NOTES[0]).replace("{mask}", "[MASK]")
    batch = minilm.tokenize([text])
    with torch.no_grad():
        hidden = minilm(**batch).tokens
    at = batch["input_ids"][0].tolist().index(minilm.tokenizer.mask_token_id)
    torch.testing.assert_close(
        states(prompted(minilm, MANUAL))[0], hidden[0, at], atol=1e-5, rtol=0
    )


def test_padding_changes_nothing(minilm: Backbone) -> None:
    backbone = prompted(minilm, SOFT)
    together = states(backbone)
    alone = torch.cat([states(backbone, [note]) for note in NOTES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


TEMPLATES = [
    SOFT,
    "{mask} : {text}",
    "[soft*5] {text} it was {mask}",
    "Say {mask} of {text} [soft:now]",
]


@settings(deadline=None, max_examples=40)
@given(
    text=st.text(max_size=60), template=st.sampled_from(TEMPLATES), times=st.sampled_from([1, 200])
)
def test_one_mask_and_a_whole_template(text: str, template: str, times: int) -> None:
    tokenizer = open_tokenizer()
    made = Template(template, tokenizer)
    around = len(made.encode([""])[0].input_ids)
    one = made.encode([text * times + " [MASK] " * (times > 1)], 64)[0]
    assert len(one.input_ids) <= 64
    assert one.input_ids.count(tokenizer.mask_token_id) == 1
    assert one.input_ids[one.mask_at] == tokenizer.mask_token_id
    assert [slot for slot in one.slots if slot] == list(range(1, len(made.soft_ids) + 1))
    assert len(one.slots) == len(one.input_ids) >= around
    empty = made.encode([""])[0].input_ids
    rest = iter(one.input_ids)
    assert all(token in rest for token in empty), "a token of the template was cut"


def open_tokenizer(kept: list[Any] = []) -> Any:  # noqa: B006
    if not kept:
        kept.append(open_backbone("builtin:minilm#random").tokenizer)
    return kept[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{text} is it", "0 {mask}"),
        ("{text} {mask} {mask}", "2 {mask}"),
        ("it is {mask}", "0 {text}"),
        ("{text} {mask} {note}", "{note}"),
        ("{text} {mask} [soft]", r"\[soft\]"),
        ("{text} {mask} [soft: ]", "no words"),
        ("{text} {mask} [soft*0]", "no vector"),
    ],
)
def test_wrong_templates_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_template(text)


def test_a_template_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads 8"):
        Template("[soft*20] {text} {mask}", open_tokenizer()).encode(["a"], 8)


def test_a_second_mask_among_the_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="among its words"):
        Template("{text} [MASK] is {mask}.", open_tokenizer())


def test_a_template_is_never_evaluated() -> None:
    pieces = parse_template("{text} __import__('os') {mask}")
    assert pieces[1].words == " __import__('os')"


CLASSES = ("heart", "skin", "lung")
WORDS = {"heart": ["heart", "cardiac"], "skin": ["skin"], "lung": ["lung", "breath"]}


def decoder() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(16, open_tokenizer().vocab_size)


def test_the_manual_verbaliser_equals_its_definition() -> None:
    layer, tokenizer = decoder(), open_tokenizer()
    state = torch.randn(5, 16)
    ours = ManualVerbalizer(layer, label_tokens(WORDS, CLASSES, tokenizer))(state)
    whole = layer(state)
    ids = {
        word: tokenizer.convert_tokens_to_ids(word) for words in WORDS.values() for word in words
    }
    total = torch.stack([whole[:, i] for i in ids.values()], 1).logsumexp(1)
    for place, name in enumerate(CLASSES):
        logs = [whole[:, ids[word]] - total for word in WORDS[name]]
        torch.testing.assert_close(ours[:, place], torch.stack(logs).mean(0))


def test_a_constant_on_all_words_changes_nothing() -> None:
    layer = decoder()
    tokens = label_tokens(WORDS, CLASSES, open_tokenizer())
    state = torch.randn(5, 16)
    before = ManualVerbalizer(layer, tokens)(state)
    layer.bias.data += 3.0
    torch.testing.assert_close(ManualVerbalizer(layer, tokens)(state), before)
    assert not list(ManualVerbalizer(layer, tokens).parameters())


def test_the_odds_of_two_classes() -> None:
    inner = SoftVerbalizer(16, 2)
    state = torch.randn(5, 16)
    logit = Binary(inner)(state)[:, 0]
    torch.testing.assert_close(logit.sigmoid(), inner(state).softmax(-1)[:, 1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({**WORDS, "bone": ["bone"]}, "no class 'bone'"),
        ({"heart": ["heart"], "skin": ["skin"]}, "'lung' has no label word"),
        ({**WORDS, "lung": ["heart", "cardiac"]}, "'heart' and 'lung' have the same"),
        ({**WORDS, "lung": ["pneumonectomy"]}, "falls into"),
        ({**WORDS, "lung": ["  "]}, "empty"),
        ({**WORDS, "lung": ["lung", "\u2603"]}, "not in the vocabulary"),
    ],
)
def test_wrong_label_words_are_refused(words: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        label_tokens(words, CLASSES, open_tokenizer())


def test_codes_with_one_first_piece_are_inseparable() -> None:
    words = {"heart": ["i21.001"], "skin": ["i21.002"], "lung": ["lung"]}
    with pytest.raises(ConfigError, match="same label tokens"):
        label_tokens(words, CLASSES, open_tokenizer(), "first")
    assert len(label_tokens(words, CLASSES, open_tokenizer(), "mean")) == 3


def test_blanks_begin_as_asked() -> None:
    weight = torch.randn(9, 4)
    vocabulary = initial([None, 5, None], weight, "vocabulary", 0)
    assert torch.equal(vocabulary, weight[[0, 5, 1]])
    uniform = initial([None] * 200, weight, "uniform", 0)
    assert uniform.abs().max() <= 0.5
    assert uniform.abs().max() > 0.49
    assert torch.equal(uniform, initial([None] * 200, weight, "uniform", 0))


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_trained_head_is_taken_whole(family: str, tmp_path: Path) -> None:
    tokenizer = open_tokenizer()
    torch.manual_seed(0)
    model: Any
    if family == "bert":
        model = BertForMaskedLM(BertConfig(**SMALL))
    else:
        model = RobertaForMaskedLM(RobertaConfig(**SMALL, vocab_size=tokenizer.vocab_size))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = open_backbone(str(tmp_path)).eval()
    head = open_head(backbone)
    assert not head.fresh
    batch = tokenizer(["a rash of two days"], return_tensors="pt")
    batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = backbone.network(**batch).last_hidden_state
        torch.testing.assert_close(
            head.decoder(head.transform(hidden)), model.eval()(**batch).logits, atol=1e-5, rtol=0
        )


def test_a_sentence_encoder_has_a_fresh_head(minilm: Backbone) -> None:
    head = open_head(minilm)
    assert head.fresh
    assert torch.equal(head.decoder.weight, minilm.network.get_input_embeddings().weight)


def test_a_network_of_images_has_none() -> None:
    with pytest.raises(BackboneError, match="masked language model"):
        open_head(open_backbone("builtin:mobilenet-v2#random"))
