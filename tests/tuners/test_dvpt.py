"""DVPT against its card: dynamic prompts, sharing, gates, stages, files."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
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
from torch.nn import functional as F

from galenic import tuners
from galenic.core.errors import BackboneError, ConfigError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened
from galenic.models.prefix import frozen_prefix
from galenic.tuners.dvpt import DVPTConfig
from galenic.tuners.dvpt.functional import attend, dynamic_mlp, first_tokens, share_mlp

CHAINS = (
    "vit", "ast", "bert", "deit", "dinov2", "dinov2 with registers", "clip", "roberta",
    "distilbert",
    "timm-like",
)  # fmt: skip
STAGED = ("swin", "segformer")


def weights(d: int, r: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((r, d), (r,), (d, r), (d,), ())
    return tuple(torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def gathered_by_loops(queries: np.ndarray, z: np.ndarray, scale: float) -> np.ndarray:
    result = np.zeros_like(queries)
    for i, query in enumerate(queries):
        scores = np.array([scale * (query @ row) for row in z])
        share = np.exp(scores - scores.max())
        result[i] = sum(a * row for a, row in zip(share / share.sum(), z, strict=True))
    return result


# The maths -------------------------------------------------------------------------------


def test_dynamic_mlp_equals_loops() -> None:
    down, down_bias, up, up_bias, gate = weights(6, 3)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    queries = torch.randn(2, 3, dtype=torch.float64)
    got = dynamic_mlp(x, down, down_bias, up, up_bias, gate, queries, at=1, scale=3**-0.5)
    for sample in range(2):
        z = quick_gelu(x[sample].numpy() @ down.numpy().T + down_bias.numpy())
        carried = z.copy()
        carried[1:3] = gathered_by_loops(queries.numpy(), z, 3**-0.5)
        expected = gate.item() * (carried @ up.numpy().T + up_bias.numpy())
        np.testing.assert_allclose(got[sample].numpy(), expected, rtol=1e-10)


def test_share_mlp_equals_the_formula() -> None:
    down, down_bias, up, up_bias, gate = weights(6, 3)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    z = quick_gelu(x.numpy() @ down.numpy().T + down_bias.numpy())
    expected = x.numpy() + gate.item() * (z @ up.numpy().T + up_bias.numpy())
    got = share_mlp(x, down, down_bias, up, up_bias, gate, base=x)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)


def test_gathered_features_are_the_image_s_and_know_no_order() -> None:
    queries, z = torch.randn(4, 5), torch.randn(2, 9, 5)
    gathered = attend(queries, z, 0.5)
    assert not torch.allclose(gathered[0], gathered[1])
    torch.testing.assert_close(attend(queries, z[:, torch.randperm(9)], 0.5), gathered)


def test_padding_is_not_gathered() -> None:
    queries, z = torch.randn(4, 5), torch.randn(1, 9, 5)
    keep = torch.arange(9)[None] < 6
    torch.testing.assert_close(attend(queries, z, 0.5, keep), attend(queries, z[:, :6], 0.5))


def test_more_prompts_than_tokens_are_refused() -> None:
    assert first_tokens(torch.ones(1, 3, 2), 3).shape == (1, 3, 2)
    assert first_tokens(torch.ones(1, 3, 2), 5)[0, :, 0].tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="num_prompts is 4") as error:
        first_tokens(torch.ones(1, 4, 2), 3)
    assert isinstance(error.value, ConfigError)
    assert error.value.expected == "1 to 3"


# Plain transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "repo-vit"])
@pytest.mark.parametrize("family", CHAINS)
def test_it_enters_and_the_output_keeps_its_shape(
    tiny: SimpleNamespace, family: str, variant: str
) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    before = tiny.out(network, batch)
    model = get_peft_model(network, DVPTConfig(variant=variant, num_prompts=4)).eval()
    after = tiny.out(model, batch)
    assert after.shape == before.shape
    assert not torch.allclose(after, before, atol=1e-4), "prompt tokens change the first output"
    with model.disable_adapter():
        assert torch.equal(tiny.out(model, batch), before)


def paper_by_hand(network: nn.Module, model: Any, pixels: Tensor) -> Tensor:
    """The card's first reading, for ViT, in plain operators."""
    layers = model.get_base_model().layers
    at, n = 1, 4
    x = network.embeddings(pixels)
    tokens = layers[0].dvpt_tokens["default"] + layers[0].dvpt_positions["default"]
    x = torch.cat([x[:, :at], tokens.expand(len(x), -1, -1), x[:, at:]], dim=1)
    for index, block in enumerate(network.layers):
        shared = layers[index].shared("default")
        x = x + block.attention(block.layernorm_before(x))[0]
        z = shared.down(x)
        z = z * torch.sigmoid(1.702 * z)
        scores = shared.queries @ z.transpose(1, 2) / z.shape[-1] ** 0.5
        gathered = scores.softmax(-1) @ z
        carried = torch.cat([z[:, :at], gathered, z[:, at + n :]], dim=1)
        x = x + block.mlp(block.layernorm_after(x)) + shared.gate * shared.up(carried)
    x = network.layernorm(x)
    return torch.cat([x[:, : at + n].mean(1, keepdim=True), x[:, at + n :]], dim=1)


def test_the_paper_s_variant_equals_plain_operators(tiny: SimpleNamespace) -> None:
    network = tiny.make("vit")
    plain = copy.deepcopy(network)
    model = get_peft_model(network, DVPTConfig(num_prompts=4)).eval()
    tiny.stir(model, "dvpt_")
    batch = tiny.inputs(network)
    with torch.no_grad():
        expected = paper_by_hand(plain, model, batch["pixel_values"])
    torch.testing.assert_close(tiny.out(model, batch), expected, atol=1e-5, rtol=1e-5)


def test_prompts_pass_the_norm_of_embeddings(tiny: SimpleNamespace) -> None:
    network = tiny.make("clip")
    norm = copy.deepcopy(network.pre_layrnorm)
    model = get_peft_model(network, DVPTConfig(num_prompts=4)).eval()
    block = model.get_base_model().encoder.layers[0]
    seen: list[Tensor] = []
    block.base_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tiny.out(model, tiny.inputs(network))
    tokens = block.dvpt_tokens["default"] + block.dvpt_positions["default"]
    torch.testing.assert_close(seen[0][1, 1:5], norm(tokens))


def test_the_attention_is_alive(tiny: SimpleNamespace) -> None:
    network = tiny.make("vit")
    batch = tiny.inputs(network)
    outputs = []
    for scale in ("rsqrt", 3.0):
        model = get_peft_model(copy.deepcopy(network), DVPTConfig(attn_scale=scale)).eval()
        torch.manual_seed(4)
        for name, parameter in model.named_parameters():
            if "dvpt_" in name:
                parameter.data = torch.randn(parameter.shape)
        outputs.append(tiny.out(model, batch))
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    static = get_peft_model(copy.deepcopy(network), DVPTConfig(variant="repo-vit")).eval()
    assert not any("queries" in name for name, _ in static.named_parameters())
    state = get_peft_model_state_dict(model)
    set_peft_model_state_dict(static, {k: v for k, v in state.items() if "queries" not in k})
    assert not torch.allclose(tiny.out(static, batch), outputs[1], atol=1e-3)


def test_counts_and_sharing_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        base = hf.ViTModel(hf.ViTConfig(), add_pooling_layer=False)
        model = get_peft_model(base, DVPTConfig(variant="repo-vit"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 202_836
    layers = base.layers
    assert layers[0].shared("default") is layers[1].shared("default") is layers[2].shared("default")
    assert layers[3].shared("default") is not layers[2].shared("default")
    saved = get_peft_model_state_dict(model)
    assert sum(value.numel() for value in saved.values()) == 202_836
    assert sum("gate" in name for name in saved) == 4


@pytest.mark.parametrize(("key", "value"), [("latent_dim", 33), ("last_blocks", 4)])
def test_what_does_not_fit_is_refused_with_its_range(
    tiny: SimpleNamespace, key: str, value: int
) -> None:
    network = tiny.make("vit")
    with pytest.raises(ConfigError, match=key) as error:
        get_peft_model(network, DVPTConfig(**{key: value}))
    assert error.value.expected.startswith("1 to ")
    assert type(network.layers[0]).__name__ == "ViTLayer"


@pytest.mark.parametrize(
    "values", [{"num_prompts": 0}, {"latent_dim": 0}, {"attn_scale": "sqrt"}, {"variant": "x"}]
)
def test_impossible_settings_are_refused_at_once(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tuners.parse_tuner({"method": "dvpt", **values})
    with pytest.raises(ValueError):
        DVPTConfig(**values)


def test_gradients_reach_everything_after_one_step(tiny: SimpleNamespace) -> None:
    for family in ("vit", "swin"):
        network = tiny.make(family)
        model = get_peft_model(network, DVPTConfig()).train()
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert all("dvpt_" in name for name in trained)
        optimizer = torch.optim.SGD(trained.values(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(**tiny.inputs(network)).last_hidden_state.square().mean().backward()
            optimizer.step()
        still = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
        assert still == []
        assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_a_text_alone_is_the_text_among_longer_ones(tiny: SimpleNamespace) -> None:
    for family in ("bert", "distilbert"):
        network = tiny.make(family)
        model = get_peft_model(network, DVPTConfig(num_prompts=4)).eval()
        tiny.stir(model, "dvpt_", 0.5)
        batch = tiny.inputs(network)
        batch["attention_mask"][1, 5:] = 0
        alone = tiny.out(model, {k: v[1:, :5] for k, v in batch.items()})
        torch.testing.assert_close(tiny.out(model, batch)[1, :5], alone[0], atol=1e-5, rtol=1e-5)


def test_the_first_blocks_stay_a_frozen_prefix(tiny: SimpleNamespace) -> None:
    network = tiny.make("vit")
    get_peft_model(network, DVPTConfig(last_blocks=1))
    assert frozen_prefix(network) == 2


# Stages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", STAGED)
def test_networks_in_stages_start_exact(tiny: SimpleNamespace, family: str) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    before = tiny.out(network, batch)
    model = get_peft_model(network, DVPTConfig(num_prompts=6)).eval()
    assert torch.equal(tiny.out(model, batch), before)
    tiny.stir(model, "dvpt_")
    assert not torch.allclose(tiny.out(model, batch), before, atol=1e-3)
    ungated = get_peft_model(tiny.make(family), DVPTConfig(num_prompts=6, gate_prompts=False))
    assert not torch.allclose(tiny.out(ungated.eval(), batch), before, atol=1e-4)


def test_a_staged_block_computes_the_equations(tiny: SimpleNamespace) -> None:
    network = tiny.make("segformer")
    plain = copy.deepcopy(network.stages[1].blocks[0])
    model = get_peft_model(network, DVPTConfig(num_prompts=5)).eval()
    tiny.stir(model, "dvpt_")
    block = model.get_base_model().stages[1].blocks[0]
    shared, prompts = block.shared("default"), block.dvpt_prompts["default"]
    x = torch.randn(2, 16, 32)
    with torch.no_grad():
        h = x + plain.attention(plain.layernorm_before(x), 4, 4)[0]
        gathered = attend(prompts, h, 32**-0.5)
        h = h + F.pad(block.dvpt_prompt_gate["default"] * gathered, (0, 0, 0, 11))
        z = shared.down(h)
        side = shared.gate * shared.up(z * torch.sigmoid(1.702 * z))
        expected = h + plain.mlp(plain.layernorm_after(h), 4, 4) + side
        got = block(x, 4, 4)
    got = got[0] if isinstance(got, tuple) else got
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_widths_are_never_shared(tiny: SimpleNamespace) -> None:
    network = tiny.make("segformer")  # two blocks of width 16, one of width 32
    get_peft_model(network, DVPTConfig(share_every=3))
    first, second = network.stages[0].blocks
    assert first.shared("default") is second.shared("default")
    assert network.stages[1].blocks[0].shared("default").down.in_features == 32


def test_too_many_prompts_for_a_stage_are_named(tiny: SimpleNamespace) -> None:
    network = tiny.make("swin")
    model = get_peft_model(network, DVPTConfig(num_prompts=17)).eval()
    with pytest.raises(ValueError, match="only 16 tokens"):
        tiny.out(model, tiny.inputs(network))


def test_tokens_do_not_enter_windows_and_repo_wants_pre_norm(tiny: SimpleNamespace) -> None:
    with pytest.raises(BackboneError, match="stages or windows"):
        get_peft_model(tiny.make("swin"), DVPTConfig(variant="paper"))
    with pytest.raises(BackboneError, match="no norm stands before"):
        get_peft_model(tiny.make("bert"), DVPTConfig(variant="repo"))


class Behind(nn.Module):
    """A block with its norms behind the sums, in the layout of one with norms before them."""

    def __init__(self, before: Any) -> None:
        super().__init__()
        self.norm1, self.attn = before.norm1, before.attn
        self.norm2, self.mlp = before.norm2, before.mlp

    def forward(self, x: Tensor, _: None = None) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


@pytest.mark.parametrize("variant", ["paper", "repo"])
def test_a_norm_behind_the_feed_forward_is_not_taken_for_one_before_it(
    tiny: SimpleNamespace, variant: str
) -> None:
    network = tiny.make("timm-like")  # without a config: no example can be made
    network.blocks = nn.Sequential(*(Behind(block) for block in network.blocks))
    model = get_peft_model(network, DVPTConfig(variant=variant, num_prompts=4)).eval()
    with pytest.raises(BackboneError, match="never passed"):
        tiny.out(model, tiny.inputs(network))


def test_one_sound_knows_nothing_of_the_one_before() -> None:
    torch.manual_seed(0)
    config = hf.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 4), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, num_feat_extract_layers=2,
    )  # fmt: skip
    model = get_peft_model(hf.HubertModel(config), DVPTConfig(num_prompts=4, gate_init=0.5)).eval()
    first, second = torch.randn(2, 1, 800)
    with torch.no_grad():
        alone = model(first).last_hidden_state
        model(second)
        assert torch.equal(model(first).last_hidden_state, alone)


# Pooling, files, several adapters ------------------------------------------------------------


def test_the_pooled_feature_is_the_mean_of_class_token_and_prompts(tiny: SimpleNamespace) -> None:
    def opened(pool: str) -> Backbone:
        spec = InputSpec("pixel_values", "image", 3, (32, 32))
        return Backbone(Opened(tiny.make("vit"), spec, pool=pool, prefix_tokens=1), "vit", "auto")

    backbone = opened("cls")
    config = tuners.parse_tuner({"method": "dvpt", "num_prompts": 4})
    tuners.attach(backbone, config)
    batch = tiny.inputs(backbone.network.get_base_model())
    ends: list[Tensor] = []
    norm = backbone.network.get_base_model().layernorm
    norm.register_forward_hook(lambda _, __, output: ends.append(output))
    with torch.no_grad():
        features = backbone.eval()(**batch)
    torch.testing.assert_close(features.pooled, ends[0][:, :5].mean(1))
    assert features.tokens.shape[1] == 17
    with pytest.raises(ConfigError, match="pools by mean"):
        tuners.attach(opened("mean"), tuners.parse_tuner({"method": "dvpt", "pool": "prompts+cls"}))


@pytest.mark.parametrize("family", ["vit", "bert", "swin"])
def test_saved_loaded_copied_and_taken_out(
    tiny: SimpleNamespace, family: str, tmp_path: Path
) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    before = tiny.out(network, batch)
    model = get_peft_model(network, DVPTConfig()).eval()
    tiny.stir(model, "dvpt_")
    tuned = tiny.out(model, batch)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny.make(family), tmp_path).eval()
    assert torch.equal(tiny.out(again, batch), tuned)
    other = copy.deepcopy(model)
    tiny.stir(model, "dvpt_", 1.0)
    assert not torch.equal(tiny.out(model, batch), tuned)
    assert torch.equal(tiny.out(other, batch), tuned)
    with pytest.raises(BackboneError, match="nothing to merge"):
        model.merge_and_unload()
    plain = model.unload()
    assert torch.equal(tiny.out(plain, batch), before)
    assert [type(m) for m in plain.modules()] == [type(m) for m in tiny.make(family).modules()]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in plain.modules())


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_two_adapters_take_turns(tiny: SimpleNamespace, family: str) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    model = get_peft_model(network, DVPTConfig(share_every=2)).eval()
    tiny.stir(model, "dvpt_")
    first = tiny.out(model, batch)
    config = DVPTConfig(num_prompts=3, share_every=1, last_blocks=1)
    model.add_adapter("second", config)
    assert config.placed is None
    assert torch.equal(tiny.out(model, batch), first)
    model.set_adapter("second")
    tiny.stir(model, ".second", 0.3)
    alone = get_peft_model(tiny.make(family), config, adapter_name="second").eval()
    state = get_peft_model_state_dict(model, adapter_name="second")
    set_peft_model_state_dict(alone, state, adapter_name="second")
    torch.testing.assert_close(tiny.out(model, batch), tiny.out(alone, batch))
    model.set_adapter("default")
    assert torch.equal(tiny.out(model, batch), first)
