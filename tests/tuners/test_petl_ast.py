"""PETL-AST against its card: start, placement, convolution, prompts, prefixes, files."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn

from galenic import tuners
from galenic.core.errors import BackboneError, ConfigError
from galenic.tuners._sublayers import sublayers
from galenic.tuners.petl_ast import PETLASTConfig

CHAINS = (
    "vit", "ast", "bert", "deit", "dinov2", "dinov2 with registers", "clip", "roberta",
    "distilbert",
    "timm-like",
)  # fmt: skip
STAGED = ("swin", "segformer")
ADAPTERS = ("conformer", "pfeiffer", "houlsby")
PROMPTS = ("prompt", "deep-prompt", "prefix")


# Where it goes ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*CHAINS, *STAGED])
def test_both_halves_of_every_block_are_found(tiny: SimpleNamespace, family: str) -> None:
    network = tiny.make(family)
    halves = sublayers(network)
    assert [half.kind for half in halves[:2]] == ["attention", "mlp"]
    assert len(halves) == 2 * {"swin": 4}.get(family, 3)
    for half in halves:
        assert half.call is not None or half.tap is not None
        assert half.norm is not None


@pytest.mark.parametrize("placement", ["parallel", "sequential"])
@pytest.mark.parametrize("variant", ADAPTERS)
@pytest.mark.parametrize("family", [*CHAINS, *STAGED])
def test_adapters_start_as_the_backbone(
    tiny: SimpleNamespace, family: str, variant: str, placement: str
) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    before = tiny.out(network, batch)
    model = get_peft_model(network, PETLASTConfig(variant=variant, placement=placement)).eval()
    assert torch.equal(tiny.out(model, batch), before)
    tiny.stir(model, "petl_")
    assert not torch.allclose(tiny.out(model, batch), before, atol=1e-3)


@pytest.mark.parametrize(("placement", "residual"), [("parallel", True), ("sequential", False)])
def test_the_other_two_sums_are_never_the_identity(
    tiny: SimpleNamespace, placement: str, residual: bool
) -> None:
    network = tiny.make("ast")
    batch = tiny.inputs(network)
    before = tiny.out(network, batch)
    config = PETLASTConfig(placement=placement, residual=residual)
    assert not torch.allclose(tiny.out(get_peft_model(network, config).eval(), batch), before)


def by_hand(block: Any, x: Tensor, adapters: dict[str, nn.Module], config: PETLASTConfig) -> Tensor:
    """The card's equations for one pre-norm block of AST."""

    def half(site: str, layer: nn.Module, normed: Tensor) -> Tensor:
        f = layer(normed)
        f = f[0] if isinstance(f, tuple) else f
        if site not in adapters:
            return f
        if config.placement == "parallel":
            return f + adapters[site](normed) + (normed if config.adds_residual else 0)
        return adapters[site](f) + (f if config.adds_residual else 0)

    x = x + half("mhsa", block.attention, block.layernorm_before(x))
    return x + half("ffn", block.mlp, block.layernorm_after(x))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("placement", ["parallel", "sequential"])
@pytest.mark.parametrize("variant", ADAPTERS)
def test_a_block_computes_the_equations(
    tiny: SimpleNamespace, variant: str, placement: str, residual: bool
) -> None:
    network = tiny.make("ast")
    plain = copy.deepcopy(network.layers[0])
    config = PETLASTConfig(
        variant=variant, placement=placement, residual=residual, train_layernorm=False
    )
    model = get_peft_model(network, config).eval()
    tiny.stir(model, "petl_")
    block = model.get_base_model().layers[0]
    adapters = {"ffn": block.mlp.petl_adapter["default"]}
    if variant == "houlsby":
        adapters["mhsa"] = block.attention.petl_adapter["default"]
    x = torch.randn(2, 17, 32)
    with torch.no_grad():
        torch.testing.assert_close(block(x), by_hand(plain, x, adapters, config))


@pytest.mark.parametrize("placement", ["parallel", "sequential"])
def test_a_post_norm_block_computes_the_equations(tiny: SimpleNamespace, placement: str) -> None:
    network = tiny.make("bert")
    plain = copy.deepcopy(network.encoder.layer[0])
    config = PETLASTConfig(variant="pfeiffer", placement=placement, train_layernorm=False)
    model = get_peft_model(network, config).eval()
    tiny.stir(model, "petl_")
    block = model.get_base_model().encoder.layer[0]
    adapter = block.output.dense.petl_adapter["default"]
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        h = plain.attention(x)[0]
        f = plain.output.dense(plain.intermediate(h))
        f = f + adapter(h if placement == "parallel" else f)
        torch.testing.assert_close(block(x), plain.output.LayerNorm(f + h))


@pytest.mark.parametrize("train_layernorm", [True, False])
def test_what_the_norm_keeps_gives_the_same_gradients(
    tiny: SimpleNamespace, train_layernorm: bool
) -> None:
    def gradients(follow: bool) -> dict[str, Tensor]:
        network = tiny.make("vit")
        config = PETLASTConfig(variant="houlsby", train_layernorm=train_layernorm)
        model = get_peft_model(network, config)
        tiny.stir(model, "petl_")
        layers = [m for m in model.modules() if hasattr(m, "petl_adapter")]
        assert all(layer._follows is not None for layer in layers)
        if not follow:
            for layer in layers:
                layer._follows.remove()
        model(**tiny.inputs(network)).last_hidden_state.sin().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients(False)
    for name, value in gradients(True).items():
        torch.testing.assert_close(value, plain[name], msg=name)


def test_the_input_norm_matters(tiny: SimpleNamespace) -> None:
    network = tiny.make("ast")
    model = get_peft_model(network, PETLASTConfig()).eval()
    tiny.stir(model, "petl_")
    batch = tiny.inputs(network)
    before = tiny.out(model, batch)
    model.get_base_model().layers[1].mlp.petl_adapter["default"].input_norm.weight.data *= 2
    assert not torch.allclose(tiny.out(model, batch), before)


def test_ast_has_the_paper_s_count() -> None:
    with torch.device("meta"):
        base = hf.ASTModel(hf.ASTConfig())
        model = get_peft_model(base, PETLASTConfig(reduction=96))
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(v for n, v in trained.items() if "petl_" in n) == 252_288
    assert sum(v for n, v in trained.items() if "layernorm" in n) == 12 * 1_536 + 1_536
    share = sum(trained.values()) / sum(p.numel() for p in base.parameters())
    assert 0.0029 < share < 0.0034


@pytest.mark.parametrize(
    ("key", "value"), [("bottleneck", 33), ("reduction", 65.0), ("last_blocks", 4)]
)
def test_what_does_not_fit_is_refused_with_its_range(
    tiny: SimpleNamespace, key: str, value: float
) -> None:
    network = tiny.make("vit")
    with pytest.raises(ConfigError, match=key) as error:
        get_peft_model(network, PETLASTConfig(**{key: value}))
    assert "to" in error.value.expected
    assert type(network.layers[0].mlp).__name__ == "ViTMLP"


@pytest.mark.parametrize(
    "values", [{"kernel_size": 4}, {"variant": "prefix", "prompts": 5}, {"placement": "beside"}]
)
def test_impossible_settings_are_refused_at_once(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tuners.parse_tuner({"method": "petl_ast", **values})
    with pytest.raises(ValueError):
        PETLASTConfig(**values)


# Training --------------------------------------------------------------------------------


def teach(model: nn.Module, batch: dict[str, Tensor], steps: int) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=5e-3, betas=(0.9, 0.98), weight_decay=0.1)
    model.train()
    for _ in range(steps):
        adam.zero_grad()
        (model(**batch).last_hidden_state - 1).square().mean().backward()
        adam.step()
    model.eval()


@pytest.mark.parametrize("variant", ADAPTERS)
def test_every_adapter_weight_moves_and_the_encoder_stays(
    tiny: SimpleNamespace, variant: str
) -> None:
    network = tiny.make("ast")
    model = get_peft_model(network, PETLASTConfig(variant=variant))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    teach(model, tiny.inputs(network, 4), 50)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) is (name not in trained), name


def test_a_sample_alone_is_the_sample_in_a_batch(tiny: SimpleNamespace) -> None:
    network = tiny.make("ast")
    model = get_peft_model(network, PETLASTConfig())
    batch = tiny.inputs(network, 8)
    teach(model, batch, 5)
    together = tiny.out(model, batch)
    alone = tiny.out(model, {k: v[:1] for k, v in batch.items()})
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-5)


def test_a_text_alone_is_the_text_among_longer_ones(tiny: SimpleNamespace) -> None:
    network = tiny.make("bert")
    model = get_peft_model(network, PETLASTConfig(kernel_size=7)).eval()
    tiny.stir(model, "petl_")
    batch = tiny.inputs(network)
    batch["attention_mask"][1, 5:] = 0
    alone = tiny.out(model, {k: v[1:, :5] for k, v in batch.items()})
    torch.testing.assert_close(tiny.out(model, batch)[1, :5], alone[0], atol=1e-5, rtol=1e-5)


def test_frozen_parts_draw_no_dropout(tiny: SimpleNamespace) -> None:
    network = tiny.make("bert")  # dropout of 0.1 by its config
    batch = tiny.inputs(network)
    model = get_peft_model(network, PETLASTConfig(variant="pfeiffer")).train()
    assert torch.equal(tiny.out(model, batch), tiny.out(model, batch))
    noisy = get_peft_model(tiny.make("bert"), PETLASTConfig(encoder_eval=False)).train()
    assert not torch.equal(tiny.out(noisy, batch), tiny.out(noisy, batch))


# Files, several adapters, the way back ----------------------------------------------------


@pytest.mark.parametrize("variant", [*ADAPTERS, *PROMPTS])
@pytest.mark.parametrize("family", ["ast", "bert"])
def test_saved_loaded_copied_and_taken_out(
    tiny: SimpleNamespace, family: str, variant: str, tmp_path: Path
) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network, 4)
    before = tiny.out(network, batch)
    model = get_peft_model(network, PETLASTConfig(variant=variant))
    teach(model, batch, 3)  # running statistics move as well
    tuned = tiny.out(model, batch)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny.make(family), tmp_path).eval()
    assert torch.equal(tiny.out(again, batch), tuned)
    other = copy.deepcopy(model)
    tiny.stir(model, "petl_", 1.0)
    assert torch.equal(tiny.out(other, batch), tuned)
    with pytest.raises(BackboneError, match="nothing to merge"):
        model.merge_and_unload()
    plain = model.unload()
    assert torch.equal(tiny.out(plain, batch), before)
    assert [type(m) for m in plain.modules()] == [type(m) for m in tiny.make(family).modules()]
    assert not any(m._forward_pre_hooks for m in plain.modules())


@pytest.mark.parametrize("variant", [*ADAPTERS, *PROMPTS])
def test_two_adapters_take_turns(tiny: SimpleNamespace, variant: str) -> None:
    network = tiny.make("bert")
    batch = tiny.inputs(network)
    model = get_peft_model(network, PETLASTConfig(variant=variant)).eval()
    tiny.stir(model, "petl_")
    first = tiny.out(model, batch)
    config = PETLASTConfig(variant=variant, prompts=4, bottleneck=5, last_blocks=2)
    model.add_adapter("second", config)
    assert config.placed is None
    assert torch.equal(tiny.out(model, batch), first)
    model.set_adapter("second")
    alone = get_peft_model(tiny.make("bert"), config, adapter_name="second").eval()
    set_peft_model_state_dict(
        alone, get_peft_model_state_dict(model, adapter_name="second"), adapter_name="second"
    )
    torch.testing.assert_close(tiny.out(model, batch), tiny.out(alone, batch))
    model.set_adapter("default")
    assert torch.equal(tiny.out(model, batch), first)


@pytest.mark.parametrize("variant", [*ADAPTERS, *PROMPTS])
def test_the_first_blocks_stay_a_frozen_prefix(tiny: SimpleNamespace, variant: str) -> None:
    from galenic.models.prefix import frozen_prefix

    network = tiny.make("vit")
    get_peft_model(network, PETLASTConfig(variant=variant, last_blocks=1))
    assert frozen_prefix(network) == 2
