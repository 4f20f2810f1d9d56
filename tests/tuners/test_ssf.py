"""SSF against its card: start, gradients, merge and unmerge, files, families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from galenic.tuners._merging import MergeError
from galenic.tuners.ssf import SSFConfig
from galenic.tuners.ssf.functional import scale_shift

IMAGE = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
WORDS = {"input_ids": torch.arange(12).reshape(2, 6) + 5}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def vit() -> nn.Module:
    return ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8), add_pooling_layer=False)


def bert() -> nn.Module:
    return BertModel(BertConfig(**SMALL, vocab_size=50), add_pooling_layer=False)


def swin() -> nn.Module:
    return SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        add_pooling_layer=False,
    )  # fmt: skip


def convnext() -> nn.Module:
    return ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))


FAMILIES = {
    "vit": (vit, IMAGE),
    "bert": (bert, WORDS),
    "swin": (swin, IMAGE),
    "convnext": (convnext, IMAGE),
}


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    build, inputs = FAMILIES[request.param]
    return build().eval(), inputs


def out(network: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return network(**inputs).last_hidden_state


def stir(model: nn.Module) -> None:
    """Pairs as after a training: far from one and zero."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ssf" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))


def test_identity_start_is_the_backbone_bit_for_bit(network) -> None:
    base, inputs = network
    before = out(base, inputs)
    assert torch.equal(out(get_peft_model(base, SSFConfig(init="identity")).eval(), inputs), before)


def test_normal_start_is_near_and_not_equal(network) -> None:
    base, inputs = network
    before = out(base, inputs)
    after = out(get_peft_model(base, SSFConfig()).eval(), inputs)
    assert not torch.equal(after, before)


def test_only_the_pairs_get_gradients_and_the_rest_stays(network) -> None:
    base, inputs = network
    model = get_peft_model(base, SSFConfig()).train()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    model(**inputs).last_hidden_state.square().mean().backward()
    named = {n for n, p in model.named_parameters() if p.grad is not None}
    assert named
    assert all("ssf" in name for name in named)
    optimizer.step()
    for name, value in model.named_parameters():
        if name in frozen:
            assert torch.equal(value, frozen[name]), name


def test_merged_equals_unmerged_and_unmerge_gives_back_every_bit(network) -> None:
    base, inputs = network
    original = {n: v.clone() for n, v in base.state_dict().items()}
    model = get_peft_model(base, SSFConfig()).eval()
    stir(model)
    tuned = out(model, inputs)
    model.base_model.merge_adapter()
    torch.testing.assert_close(out(model, inputs), tuned, atol=2e-5, rtol=1e-4)
    model.base_model.unmerge_adapter()
    restored = model.base_model.model.state_dict()
    for name, value in original.items():
        found = restored.get(name)
        if found is None:
            stem, _, leaf = name.rpartition(".")
            found = restored[f"{stem}.base_layer.{leaf}"]
        assert torch.equal(found, value), name


def test_merge_and_unload_leaves_the_old_module_types(network) -> None:
    base, inputs = network
    kinds = [type(module) for module in base.modules()]
    model = get_peft_model(base, SSFConfig()).eval()
    stir(model)
    tuned = out(model, inputs)
    plain = model.merge_and_unload()
    assert [type(module) for module in plain.modules()] == kinds
    torch.testing.assert_close(out(plain, inputs), tuned, atol=2e-5, rtol=1e-4)


def test_disabled_is_the_backbone(network) -> None:
    base, inputs = network
    before = out(base, inputs)
    model = get_peft_model(base, SSFConfig()).eval()
    stir(model)
    with model.disable_adapter():
        assert torch.equal(out(model, inputs), before)


def test_saved_and_loaded_output_is_equal(network, tmp_path: Path) -> None:
    import copy

    base, inputs = network
    fresh = copy.deepcopy(base)
    model = get_peft_model(base, SSFConfig()).eval()
    stir(model)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert torch.equal(out(again, inputs), out(model, inputs))


def test_vit_base_has_the_paper_s_count() -> None:
    with torch.device("meta"):
        base = ViTModel(ViTConfig(), add_pooling_layer=False)
        model = get_peft_model(base, SSFConfig())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 205_824


def test_the_pair_of_fc1_acts_before_the_activation() -> None:
    model = get_peft_model(
        nn.Sequential(nn.Linear(3, 4), nn.GELU()), SSFConfig(target_modules=["0"])
    )
    stir(model)
    gamma, beta = (p for n, p in model.named_parameters() if "ssf" in n)
    x = torch.randn(5, 3)
    layer = model.base_model.model[0].get_base_layer()
    with torch.no_grad():
        pair = (
            [gamma, beta]
            if "scale" in next(n for n, _ in model.named_parameters() if "ssf" in n)
            else [beta, gamma]
        )
        expected = nn.functional.gelu(layer(x) * pair[0] + pair[1])
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("axis", [1, -1])
def test_gradients_equal_finite_differences(rebuild: bool, axis: int) -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 3, dtype=torch.float64, generator=draw, requires_grad=True)
    gamma = (1 + 0.2 * torch.randn(3, dtype=torch.float64, generator=draw)).requires_grad_()
    beta = torch.randn(3, dtype=torch.float64, generator=draw).requires_grad_()

    def pair(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        return scale_shift(x, gamma, beta, axis, rebuild=rebuild)

    assert torch.autograd.gradcheck(pair, (x, gamma, beta))


def test_a_head_that_is_never_entered_is_no_reason_to_refuse() -> None:
    network = SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=32, patch_size=8))
    model = get_peft_model(network, SSFConfig())
    assert not any(".head." in f".{name}." for name in model.peft_config["default"].placed)


@pytest.mark.parametrize(
    "normed", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_a_computed_weight_is_not_merged_into_and_nothing_else_is(normed) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), normed(nn.Linear(8, 8))).eval()
    model = get_peft_model(network, SSFConfig(init_std=0.3)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(MergeError, match="computed"):
        model.base_model.merge_adapter()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
