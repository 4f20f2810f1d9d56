"""PEGO against its card: start, terms and their gradient, groups, merge."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    ViTConfig,
    ViTModel,
)

from galenic.core.errors import BackboneError, ConfigError
from galenic.tuners.pego import PEGOConfig
from galenic.tuners.pego.functional import NORMS, fro2, l1_mean, l1_sum, orthogonal_terms
from galenic.tuners.pego.layer import PEGOLayer

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8), add_pooling_layer=False).eval()


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=PIXELS).last_hidden_state


def stirred(model: Any) -> Any:
    """As after a training: B away from zero."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pego_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def layers(model: nn.Module) -> list[PEGOLayer]:
    return [m for m in model.modules() if isinstance(m, PEGOLayer)]


def naive(weight: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Products of whole matrices, as the authors' code takes them."""
    updates = [b @ a for a, b in zip(down, up, strict=True)]
    preserve = sum((weight @ update.T).abs().sum() for update in updates)
    diversify = sum((a @ b.T).abs().sum() for a, b in combinations(updates, 2))
    return torch.as_tensor(preserve), torch.as_tensor(diversify, dtype=torch.float32)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 999), groups=st.integers(1, 4), rank=st.integers(1, 3),
    outputs=st.integers(3, 9), inputs=st.integers(3, 9),
)  # fmt: skip
def test_terms_and_gradients_equal_whole_products(
    seed: int, groups: int, rank: int, outputs: int, inputs: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=draw)
    down = torch.randn(groups, rank, inputs, generator=draw)
    up = torch.randn(groups, outputs, rank, generator=draw)
    ours_in = [t.clone().requires_grad_() for t in (down, up)]
    theirs_in = [t.clone().requires_grad_() for t in (down, up)]
    ours, theirs = orthogonal_terms(weight, *ours_in), naive(weight, *theirs_in)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    sum(ours).backward()  # type: ignore[union-attr]
    sum(theirs).backward()  # type: ignore[union-attr]
    for a, b in zip(ours_in, theirs_in, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    down = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    up = torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]])
    # Updates [[1,0],[2,0]] and [[0,3],[0,0]]; W U1^T = [[1,2],[0,0]], W U2^T = [[6,0],[-3,0]].
    preserve, diversify = orthogonal_terms(weight, down, up)
    assert preserve == 12
    assert diversify == 0


def test_norms_of_one_product() -> None:
    left, right = torch.randn(5, 2), torch.randn(7, 2)
    product = left @ right.T
    torch.testing.assert_close(l1_sum(left, right), product.abs().sum())
    torch.testing.assert_close(l1_mean(left, right), product.abs().mean())
    torch.testing.assert_close(fro2(left, right), product.square().sum())


def test_the_null_space_of_the_weight_costs_nothing() -> None:
    weight = torch.zeros(6, 6)
    weight[:, :3] = torch.randn(6, 3)
    down = torch.zeros(2, 1, 6)
    down[0, 0, 3], down[1, 0, 4] = 1.0, 1.0
    up = torch.randn(2, 6, 1)
    preserve, diversify = orthogonal_terms(weight, down, up)
    assert preserve == 0
    assert diversify == 0
    shared = down[:1].expand(2, 1, 6)
    assert orthogonal_terms(weight, shared, up)[1] > 0


@pytest.mark.parametrize("norm", NORMS)
def test_at_the_start_it_is_the_backbone_and_costs_nothing(norm: str) -> None:
    before = out(vit())
    model = get_peft_model(vit(), PEGOConfig(norm=norm)).eval()
    assert torch.equal(out(model), before)
    loss = model.base_model.orthogonal_loss()
    assert loss == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_group_is_one_update_of_the_summed_rank() -> None:
    model = stirred(get_peft_model(vit(), PEGOConfig(rank=2, groups=3)).eval())
    lora = get_peft_model(vit(), LoraConfig(r=6, lora_alpha=6, target_modules=_names(model))).eval()
    for name, layer in _named(model):
        twin = lora.base_model.model.get_submodule(name)
        twin.lora_A["default"].weight.data = layer.pego_A["default"][0].flatten(0, 1)
        twin.lora_B["default"].weight.data = layer.pego_B["default"][0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(out(model), out(lora), atol=1e-6, rtol=1e-6)


def test_the_order_of_groups_does_not_matter() -> None:
    model = stirred(get_peft_model(vit(), PEGOConfig(weight=1.0)).eval())
    before, loss = out(model), model.base_model.orthogonal_loss()
    for layer in layers(model):
        for factors in (layer.pego_A["default"], layer.pego_B["default"]):
            factors.data = factors.data[:, torch.tensor([2, 0, 3, 1])]
    torch.testing.assert_close(out(model), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.base_model.orthogonal_loss(), loss)


def test_each_term_can_be_left_out() -> None:
    both, first, second = (
        stirred(get_peft_model(vit(), PEGOConfig(weight=1.0, **terms))).base_model.orthogonal_loss()
        for terms in ({}, {"diversify": False}, {"preserve": False})
    )
    assert first > 0
    assert second > 0
    torch.testing.assert_close(first + second, both)


def test_the_loss_keeps_nothing_of_the_size_of_the_weight() -> None:
    layer = PEGOLayer(nn.Linear(64, 64), "default", PEGOConfig(weight=1.0), [[0, 64]])
    nn.init.normal_(layer.pego_B["default"])
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(0 if t is layer.base_layer.weight else t.numel()) or t, lambda t: t
    ):
        layer.orthogonal_loss()
    # Factors of all groups are 4 x 4 x 64; the weight itself is kept by reference.
    assert sorted(kept)[-2] <= 4 * 4 * 64


@pytest.mark.parametrize("norm", NORMS)
def test_mixed_precision_does_not_round_the_terms(norm: str) -> None:
    def found(mixed: bool) -> list[Tensor]:
        model = stirred(get_peft_model(vit(), PEGOConfig(norm=norm, weight=1.0)))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = model.base_model.orthogonal_loss()
        loss.backward()
        return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    for plain, mixed in zip(found(False), found(True), strict=True):
        assert mixed.dtype is torch.float32
        assert torch.equal(plain, mixed)


def test_training_keeps_updates_apart() -> None:
    """The relative overlap of a group is lower with the terms than without."""

    def overlap(weight: float) -> float:
        torch.manual_seed(0)
        layer = PEGOLayer(nn.Linear(16, 16), "default", PEGOConfig(weight=weight), [[0, 16]])
        target = torch.randn(16, 16)
        adam = torch.optim.Adam([layer.pego_A["default"], layer.pego_B["default"]], lr=1e-2)
        for _ in range(300):
            x = torch.randn(32, 16)
            loss = (layer(x) - layer.base_layer(x) - x @ target.T).square().mean()
            (loss + layer.orthogonal_loss()).backward()
            adam.step()
            adam.zero_grad()
        updates = layer.pego_B["default"][0] @ layer.pego_A["default"][0]
        pairs = [(a @ b.T).abs().sum() / (a.norm() * b.norm()) for a, b in combinations(updates, 2)]
        return float(sum(pairs).detach())

    assert overlap(3e-3) < 0.8 * overlap(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unmerging_gives_back_every_bit(dtype: torch.dtype) -> None:
    model = stirred(get_peft_model(vit().to(dtype), PEGOConfig()).eval())
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.merge_adapter()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(n.endswith("base_layer.weight") for n in changed)
    model.unmerge_adapter()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_merged_equals_apart_and_leaves_the_key_alone() -> None:
    plain = vit()
    model = stirred(get_peft_model(vit(), PEGOConfig()).eval())
    apart = out(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(out(merged), apart, atol=1e-5, rtol=1e-4)
    assert not layers(merged)
    for name, value in plain.state_dict().items():
        moved = not torch.equal(merged.state_dict()[name], value)
        tuned = any(part in name for part in ("q_proj.w", "v_proj.w", "query.w", "value.w"))
        assert moved == tuned, name


def test_a_fused_projection_carries_groups_on_query_and_value() -> None:
    torch.manual_seed(0)
    network = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).eval()
    ids = {"input_ids": torch.arange(6)[None]}
    model = stirred(get_peft_model(network, PEGOConfig(rank=2, groups=2)).eval())
    (layer,) = layers(model)
    assert layer.parts["default"] == [(0, 32), (64, 96)]
    delta = layer.delta("default")
    assert not delta[32:64].any()
    assert delta[:32].any()
    with torch.no_grad():
        apart = model(**ids).last_hidden_state
        model.merge_adapter()
        torch.testing.assert_close(model(**ids).last_hidden_state, apart, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "network",
    [
        lambda: GPTNeoXModel(GPTNeoXConfig(**SMALL, vocab_size=50)),
        lambda: BloomModel(BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4)),
    ],
)
def test_heads_one_after_another_are_no_thirds(network: Callable[[], nn.Module]) -> None:
    with pytest.raises(BackboneError, match="query_key_value") as error:
        get_peft_model(network(), PEGOConfig(rank=2, groups=2))
    assert "target_modules: [query_key_value]" in error.value.next_step
    whole = PEGOConfig(rank=2, groups=2, target_modules=["query_key_value"])
    model = get_peft_model(network(), whole)
    assert all(layer.parts["default"] == [(0, 96)] for layer in layers(model))


def test_a_second_adapter_stands_where_the_first_does(tmp_path: Path) -> None:
    config = PEGOConfig(rank=2, groups=2, target_modules=r".*attention.*")
    model = get_peft_model(vit(), config).eval()
    model.add_adapter("other", config)
    placed = [set(model.peft_config[name].placed) for name in ("default", "other")]
    assert placed[0] == placed[1]
    model.set_adapter("other")
    tuned = out(stirred(model))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(vit(), tmp_path / "other").eval()
    assert torch.equal(out(again), tuned)


def test_each_adapter_has_rows_of_its_own() -> None:
    def gpt(config: PEGOConfig) -> Any:
        torch.manual_seed(0)
        network = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).eval()
        return get_peft_model(network, config).eval()

    whole = PEGOConfig(rank=2, groups=2, target_modules=["c_attn"])
    model = gpt(PEGOConfig(rank=2, groups=3))
    model.add_adapter("whole", whole)
    (layer,), (alone,) = layers(model), layers(gpt(whole))
    assert {key: layer.parts[key] for key in layer.parts} == {
        "default": [(0, 32), (64, 96)], "whole": [(0, 96)],
    }  # fmt: skip
    assert layer.pego_B["whole"].shape == alone.pego_B["default"].shape
    stirred(model)
    for name, rows in (("default", 64), ("whole", 96)):
        assert int(layer.delta(name).any(1).sum()) == rows
        model.set_adapter(name)
        x = torch.randn(2, 3, 32)
        with torch.no_grad():
            moved = layer(x) - layer.base_layer(x)
        torch.testing.assert_close(moved, x @ layer.delta(name).T, atol=1e-5, rtol=1e-4)


def test_double_precision_is_kept_by_a_merge() -> None:
    model = stirred(get_peft_model(vit().double(), PEGOConfig()).eval())
    with torch.no_grad():
        apart = model(pixel_values=PIXELS.double()).last_hidden_state
        model.merge_adapter()
        merged = model(pixel_values=PIXELS.double()).last_hidden_state
    torch.testing.assert_close(merged, apart, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rank": 8, "groups": 5}, ConfigError, "at most 32"),
        ({"target_modules": "layer.9.q"}, BackboneError, "match"),
        ({"target_modules": ["classifier"]}, BackboneError, "head"),
        ({"last_blocks": 3}, ConfigError, "2 blocks"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    network = nn.ModuleDict({"inner": vit(), "classifier": nn.Linear(32, 2)})
    if "classifier" not in settings.get("target_modules", ""):
        network = vit()
    before = {n: type(m) for n, m in network.named_modules()}
    with pytest.raises(error, match=message):
        get_peft_model(network, PEGOConfig(**settings))
    assert {n: type(m) for n, m in network.named_modules()} == before


@pytest.mark.parametrize("bad", [{"rank": 0}, {"groups": 0}, {"norm": "l2"}, {"weight": -1.0}])
def test_values_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        PEGOConfig(**bad)


def test_two_adapters_on_one_backbone() -> None:
    network = BertModel(BertConfig(**SMALL, vocab_size=50), add_pooling_layer=False).eval()
    ids = {"input_ids": torch.arange(8).reshape(2, 4) + 5}
    model = get_peft_model(network, PEGOConfig(groups=2)).eval()
    model.add_adapter("other", PEGOConfig(groups=3, rank=2))
    stirred(model)

    def state() -> Tensor:
        with torch.no_grad():
            return model(**ids).last_hidden_state

    first = state()
    model.set_adapter("other")
    second = state()
    assert not torch.equal(first, second)
    with model.disable_adapter():
        base = state()
    assert not torch.equal(base, first)
    model.set_adapter("default")
    assert torch.equal(state(), first)


def _named(model: Any) -> list[tuple[str, PEGOLayer]]:
    found = model.base_model.model.named_modules()
    return [(n, m) for n, m in found if isinstance(m, PEGOLayer)]


def _names(model: Any) -> list[str]:
    return [name for name, _ in _named(model)]
