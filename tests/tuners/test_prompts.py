"""Prompts and prefixes: where they stand, who sees them, and attention by loops."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from peft import get_peft_model
from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.tuners._prompts import widen
from galenic.tuners._sublayers import sublayers
from galenic.tuners.petl_ast import PETLASTConfig

CHAINS = (
    "vit", "ast", "bert", "deit", "dinov2", "dinov2 with registers", "clip", "roberta",
    "distilbert",
    "timm-like",
)  # fmt: skip
STAGED = ("swin", "segformer")
PROMPTS = ("prompt", "deep-prompt", "prefix")


@pytest.mark.parametrize("variant", ["prompt", "deep-prompt"])
@pytest.mark.parametrize(("drop", "length"), [(True, 17 - 1 + 25), (False, 17 + 25)])
def test_prompts_take_the_place_of_the_distillation_token(
    tiny: SimpleNamespace, variant: str, drop: bool, length: int
) -> None:
    network = tiny.make("ast")
    batch = tiny.inputs(network)
    assert tiny.out(network, batch).shape[1] == 17
    model = get_peft_model(network, PETLASTConfig(variant=variant, drop_distillation=drop))
    assert tiny.out(model.eval(), batch).shape[1] == length


@pytest.mark.parametrize("variant", ["prompt", "deep-prompt"])
@pytest.mark.parametrize("family", CHAINS)
def test_prompted_blocks_see_the_prompts(tiny: SimpleNamespace, family: str, variant: str) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    config = PETLASTConfig(
        variant=variant, prompts=3, drop_distillation=False, train_final_norm=False
    )
    blocks = list(dict.fromkeys(half.block for half in sublayers(network)))
    plain = [copy.deepcopy(network.get_submodule(name)) for name in blocks]
    model = get_peft_model(network, config).eval()
    states: list[Tensor] = []
    layers = [model.get_base_model().get_submodule(name) for name in blocks]
    hooks = [
        layer.register_forward_hook(
            lambda _, args, kwargs, output: states.extend(
                [args[0] if args else kwargs["hidden_states"],
                 output[0] if isinstance(output, tuple) else output]
            ),
            with_kwargs=True,
        )
        for layer in layers
    ]  # fmt: skip
    tiny.out(model, batch)
    for hook in hooks:
        hook.remove()
    h = states[0]
    for index, block in enumerate(plain):
        if index == 0 or variant == "deep-prompt":
            new = layers[index].petl_prompts["default"].expand(2, -1, -1)
            rest = h[:, 1:] if index == 0 else h[:, 4:]
            h = torch.cat([h[:, :1], new, rest], dim=1)
        with torch.no_grad():
            h = block(h, None)
        h = h[0] if isinstance(h, tuple) else h
        torch.testing.assert_close(states[2 * index + 1], h)


def test_a_mask_opens_where_the_prompts_stand() -> None:
    row = torch.tensor([[0, 1, 0]])
    assert widen(row, 3, 2, at=1).tolist() == [[0, 1, 1, 1, 0]]
    assert widen(row, 3, 2, at=1, drop=1).tolist() == [[0, 1, 1, 0]]
    closed = torch.finfo(torch.float32).min
    full = torch.tensor([[0.0, closed, closed], [0.0, 0.0, closed], [0.0, 0.0, 0.0]])[None, None]
    opened = widen(full, 3, 1, at=1)[0, 0]
    assert (opened == 0).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1] * 4]
    assert widen(full, 3, 1, at=0, rows=False).shape == (1, 1, 3, 4)
    assert widen(row, 4, 2, at=1) is row


def test_padding_stays_hidden_from_prompts(tiny: SimpleNamespace) -> None:
    network = tiny.make("bert")
    batch = tiny.inputs(network)
    batch["attention_mask"][1, 5:] = 0
    for variant in PROMPTS:
        config = PETLASTConfig(variant=variant, prompt_output="strip")
        model = get_peft_model(copy.deepcopy(network), config).eval()
        together = tiny.out(model, batch)
        assert together.shape[1] == 8
        alone = tiny.out(model, {k: v[1:, :5] for k, v in batch.items()})
        torch.testing.assert_close(together[1, :5], alone[0], atol=1e-5, rtol=1e-5)


def attention_by_loops(core: Any, x: np.ndarray, keys: np.ndarray, values: np.ndarray) -> Any:
    """ViT attention over a prefix and tokens [N, d], one head and one query at a time."""

    def linear(layer: nn.Linear, value: np.ndarray) -> np.ndarray:
        return value @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    q = linear(core.q_proj, x)
    k = np.concatenate([keys, linear(core.k_proj, x)])
    v = np.concatenate([values, linear(core.v_proj, x)])
    result = np.zeros_like(q)
    size = core.head_dim
    for head in range(core.num_attention_heads):
        part = slice(head * size, (head + 1) * size)
        for query in range(len(x)):
            scores = k[:, part] @ q[query, part] * size**-0.5
            share = np.exp(scores - scores.max())
            result[query, part] = (share / share.sum()) @ v[:, part]
    return linear(core.o_proj, result)


def test_prefix_attention_equals_loops(tiny: SimpleNamespace) -> None:
    network = tiny.make("vit")
    config = network.layers[0].attention.config
    model = get_peft_model(network, PETLASTConfig(variant="prefix", prompts=6)).eval()
    layer = model.get_base_model().layers[0].attention
    tiny.stir(model, "petl_", 1.0)
    x = torch.randn(1, 5, 32)
    with torch.no_grad():
        got = layer(x)[0][0].numpy()
    keys, values = layer.petl_keys["default"], layer.petl_values["default"]
    assert keys.shape == (3, 32)
    expected = attention_by_loops(
        layer.base_layer, x[0].numpy(), keys.detach().numpy(), values.detach().numpy()
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert layer.base_layer.config is config


@pytest.mark.parametrize("family", [*CHAINS[:-1], *STAGED])
def test_prefixes_enter_and_can_be_turned_off(tiny: SimpleNamespace, family: str) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    before = tiny.out(network, batch)
    model = get_peft_model(network, PETLASTConfig(variant="prefix")).eval()
    assert not torch.equal(tiny.out(model, batch), before)
    with model.disable_adapter():
        assert torch.equal(tiny.out(model, batch), before)


def looking_back(family: str, kind: str) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    ids = {"input_ids": torch.arange(10).reshape(2, 5) + 3}
    if family == "t5":
        config = hf.T5Config(
            vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            attn_implementation=kind,
        )  # fmt: skip
        return hf.T5Model(config).eval(), {**ids, "decoder_input_ids": ids["input_ids"] + 9}
    values = hf.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, vocab_size=50, pad_token_id=0, attn_implementation=kind,
    )  # fmt: skip
    return hf.LlamaModel(values).eval(), ids


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_every_token_sees_the_whole_prefix(tiny: SimpleNamespace, family: str) -> None:
    """The fast attention is the slow one, which has no triangle of its own."""

    def found(kind: str) -> Tensor:
        network, batch = looking_back(family, kind)
        torch.manual_seed(1)
        model = get_peft_model(network, PETLASTConfig(variant="prefix", prompts=8)).eval()
        tiny.stir(model, "petl_", 0.5)
        return tiny.out(model, batch)

    torch.testing.assert_close(found("sdpa"), found("eager"), atol=1e-5, rtol=1e-5)


def test_a_prefix_is_seen_by_tokens_behind_a_cache(tiny: SimpleNamespace) -> None:
    network, batch = looking_back("llama", "sdpa")
    model = get_peft_model(network, PETLASTConfig(variant="prefix")).eval()
    tiny.stir(model, "petl_", 0.5)
    ids = batch["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids).last_hidden_state
        begun = model(input_ids=ids[:, :3], use_cache=True)
        rest = model(input_ids=ids[:, 3:], past_key_values=begun.past_key_values)
    torch.testing.assert_close(rest.last_hidden_state, whole[:, 3:], atol=1e-5, rtol=1e-5)


def test_prefixes_want_attention_that_can_be_reached(tiny: SimpleNamespace) -> None:
    network = tiny.make("timm-like")
    with pytest.raises(BackboneError, match="FusedAttention") as error:
        get_peft_model(network, PETLASTConfig(variant="prefix"))
    assert "ALL_ATTENTION_FUNCTIONS" in error.value.expected
    assert type(network.blocks[0].attn).__name__ == "FusedAttention"


def test_prompts_do_not_enter_windows(tiny: SimpleNamespace) -> None:
    for family in STAGED:
        with pytest.raises(BackboneError, match="stages or windows"):
            get_peft_model(tiny.make(family), PETLASTConfig(variant="prompt"))
