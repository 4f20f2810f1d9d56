"""transformers' Mamba on galenic's scan: the same numbers as its own slow path, in every use."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertModel,
    MambaConfig,
    MambaForCausalLM,
    MambaModel,
    PreTrainedTokenizerFast,
)

from galenic.core.errors import BackboneError
from galenic.models.backbone import open_backbone
from galenic.models.mamba import SelectiveMixer, accelerate, mixer, scan, selective_scan
from galenic.models.mamba.mixer import causal_convolution, scan_by_kernel

VOCABULARY = 40


def slow(**options: Any) -> MambaForCausalLM:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8,
        pad_token_id=0, eos_token_id=1, **options,
    )  # fmt: skip
    network = MambaForCausalLM(config).eval()
    with torch.no_grad():  # away from the common rates of the initialisation
        for name, value in network.named_parameters():
            if name.endswith(("A_log", "mixer.D", "bias")):
                value.add_(0.3 * torch.randn_like(value))
    return network


def pair(**options: Any) -> tuple[MambaForCausalLM, Any]:
    network = slow(**options)
    return network, accelerate(copy.deepcopy(network))


def tokens(length: int = 23, batch: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(2, VOCABULARY, (batch, length), generator=draw)


def left_padded() -> tuple[Tensor, Tensor]:
    ids, mask = tokens(), torch.ones(2, 23, dtype=torch.long)
    mask[1, :6] = 0
    return ids * mask, mask


@pytest.mark.parametrize(
    "options", [{}, {"use_bias": True, "use_conv_bias": False}, {"conv_kernel": 2, "expand": 3}]
)
def test_logits_and_gradients_are_those_of_the_slow_path(options: dict[str, Any]) -> None:
    theirs, ours = pair(**options)
    ids, mask = left_padded()
    for network in (theirs, ours):
        network.train()
        network(ids, attention_mask=mask, labels=ids).loss.backward()
    with torch.no_grad():
        found, expected = (
            ours(ids, attention_mask=mask).logits,
            theirs(ids, attention_mask=mask).logits,
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    others = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value.grad, others[name].grad, rtol=1e-4, atol=1e-6)


def test_weights_keep_their_names_and_fit_in_both_directions(tmp_path: Path) -> None:
    theirs, ours = pair()
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    ours.save_pretrained(tmp_path)
    back = MambaForCausalLM.from_pretrained(tmp_path)
    for name, value in back.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(accelerate(back)(ids).logits, ours(ids).logits)


def test_generation_equals_the_slow_path() -> None:
    theirs, ours = pair()
    ids, mask = left_padded()
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


@pytest.mark.parametrize("pieces", [[1] * 23, [9] + [1] * 14, [9, 14], [2, 1, 20]])
def test_cached_pieces_equal_the_whole(pieces: list[int]) -> None:
    _, ours = pair()
    ids, cache, found = tokens(), None, []
    with torch.no_grad():
        whole = ours(ids).logits
        for piece in ids.split(pieces, dim=1):
            out = ours(piece, cache_params=cache, use_cache=True)
            cache = out.cache_params
            found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_right_padding_changes_nothing_before_it(masked: bool) -> None:
    _, ours = pair()
    ids = tokens()
    padded = functional.pad(ids, (0, 9))
    mask = (padded != 0).long() if masked else None
    with torch.no_grad():
        whole, longer = ours(ids).logits, ours(padded, attention_mask=mask).logits
    torch.testing.assert_close(longer[:, :23], whole, rtol=1e-5, atol=1e-5)


def test_a_later_token_changes_nothing_before_it() -> None:
    _, ours = pair()
    ids = tokens()
    other = ids.clone()
    other[:, 11] = (other[:, 11] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = ours(ids).logits, ours(other).logits
    assert torch.equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any(-1).all()


def test_16_bit_autocast_stays_near() -> None:
    _, ours = pair()
    ids = tokens()
    with torch.no_grad():
        exact = ours(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(ids, labels=ids)
    out.loss.backward()
    found = out.logits.detach()
    assert all(torch.isfinite(p.grad).all() for p in ours.parameters())
    assert float((found - exact).abs().max() / exact.abs().max()) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_types(dtype: torch.dtype) -> None:
    theirs, ours = (network.to(dtype) for network in pair())
    ids = tokens()
    with torch.no_grad():
        found, expected = ours(ids).logits, theirs(ids).logits
    scale = expected.abs().max()
    assert float((found - expected).abs().max() / scale) < (0.05 if dtype.itemsize == 2 else 1e-6)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    _, ours = pair()
    again = copy.deepcopy(ours)
    again.gradient_checkpointing_enable()
    ids = tokens()
    for network in (ours, again):
        network.train()
        network(ids, labels=ids).loss.backward()
    for a, b in zip(ours.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("target", ["in_proj", "x_proj", "dt_proj"])
def test_adapters_of_every_projection_take_part(target: str) -> None:
    from peft import LoraConfig, get_peft_model

    _, ours = pair()
    model = get_peft_model(ours, LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    ids = tokens()
    with torch.no_grad():
        adapted = model(ids).logits
        with model.disable_adapter():
            assert not torch.equal(model(ids).logits, adapted)
    model(ids, labels=ids).loss.backward()
    free = [p for p in model.parameters() if p.requires_grad]
    assert free
    assert all(p.grad is not None and p.grad.any() for p in free)


def test_a_network_with_adapters_is_exchanged_below_them() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["in_proj", "x_proj"], init_lora_weights=False)
    model = get_peft_model(slow(), config)
    ids = tokens()
    with torch.no_grad():
        expected = model(ids).logits
        assert accelerate(model) is model
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert any(isinstance(m, SelectiveMixer) for m in model.modules())


def test_a_backbone_of_this_family_opens_accelerated(tmp_path: Path) -> None:
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "fever", "cough"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(tmp_path)
    theirs = slow()
    theirs.save_pretrained(tmp_path)
    backbone = open_backbone(str(tmp_path))
    assert any(isinstance(m, SelectiveMixer) for m in backbone.modules())
    with torch.no_grad():
        features = backbone(**backbone.tokenize(["fever", "cough fever cough"]))
        expected = theirs.backbone(torch.tensor([[3, 2, 3]])).last_hidden_state
    torch.testing.assert_close(features.tokens[1:], expected, rtol=1e-5, atol=1e-5)


def test_exchanging_twice_is_exchanging_once() -> None:
    _, ours = pair()
    mixers = [m for m in ours.modules() if isinstance(m, SelectiveMixer)]
    assert len(mixers) == 2
    assert [m for m in accelerate(ours).modules() if isinstance(m, SelectiveMixer)] == mixers


def test_other_networks_are_refused_untouched() -> None:
    network = BertModel(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    with pytest.raises(BackboneError, match="no Mamba mixer"):
        accelerate(network)


def test_the_mode_of_a_network_is_kept() -> None:
    config = MambaConfig(vocab_size=4, hidden_size=8, num_hidden_layers=1, state_size=2)
    for training in (True, False):
        network = accelerate(MambaModel(config).train(training))
        assert all(m.training == training for m in network.modules())


@pytest.mark.parametrize("bias", [True, False])
def test_shifted_products_are_a_depthwise_convolution(bias: bool) -> None:
    layer = nn.Conv1d(5, 5, 4, groups=5, padding=3, bias=bias).double()
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    expected = layer(x.transpose(1, 2))[..., :9].transpose(1, 2)
    found = causal_convolution(x, layer.weight.squeeze(1), layer.bias)
    torch.testing.assert_close(found, expected)


def test_the_kernel_is_given_its_own_layout() -> None:
    """A stand-in with the documented layout of mamba-ssm: time last, all in float32."""

    def kernel(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, return_last_state: bool
    ) -> tuple[Tensor, Tensor]:
        assert return_last_state
        state, outputs = torch.zeros(u.shape[0], *A.shape), []
        for t in range(u.shape[2]):
            entering = (delta * u)[:, :, t, None] * B[:, None, :, t]
            state = (delta[:, :, t, None] * A).exp() * state + entering
            outputs.append((state * C[:, None, :, t]).sum(-1))
        return torch.stack(outputs, 2), state

    x, dt, A = torch.randn(2, 7, 3), torch.rand(2, 7, 3), -torch.rand(3, 4)
    B, C = torch.randn(2, 2, 7, 4)
    found = scan_by_kernel(kernel, x, dt, A, B, C)
    for a, b in zip(found, selective_scan(x, dt, A, B, C), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_computed_again_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with an adapter that drops out, whose draws have to be the same the second time."""
    _, ours = pair()
    lora = LoraConfig(target_modules=["x_proj"], lora_dropout=0.4, r=2)
    network = get_peft_model(ours.train(), lora)
    ids = tokens(300)

    def gradients() -> tuple[dict[str, Tensor], int]:
        network.zero_grad()
        kept: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss = network(ids, labels=ids).loss
        loss.backward()
        found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        return found, sum(kept.values())

    again, little = gradients()
    monkeypatch.setattr(mixer, "checkpoint", lambda part, *values, use_reentrant: part(*values))
    once, much = gradients()
    assert again.keys() == once.keys()
    for name, value in once.items():
        assert value.abs().max() > 0 or "lora_A" in name
        assert torch.equal(again[name], value), name
    assert little < 0.6 * much


def test_nothing_is_scanned_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair()
    swept = []
    real = scan.sweep

    def sweep(*values: Any, reverse: bool = False) -> None:
        swept.append(reverse)
        real(*values, reverse=reverse)

    monkeypatch.setattr(scan, "sweep", sweep)
    ours(tokens(50)).logits.sum().backward()
    # A layer goes forward, forward within its backward pass, and back.
    assert len(swept) == 2 * 3 and sum(swept) == 2
