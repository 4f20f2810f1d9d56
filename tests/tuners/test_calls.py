"""What one pass shows of a network: which norm feeds what, which layers are called, who looks back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from torch import nn

from galenic.core.errors import BackboneError
from galenic.tuners import lora
from galenic.tuners._calls import calls, uncalled
from galenic.tuners._sublayers import sublayers
from galenic.tuners.dvpt import DVPTConfig
from galenic.tuners.pego import PEGOConfig
from galenic.tuners.petl_ast import PETLASTConfig
from galenic.tuners.ssf import SSFConfig

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
SOUND = {
    **SMALL, "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 4),
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
}  # fmt: skip
WORDS = {**SMALL, "vocab_size": 50, "pad_token_id": 0}
NETWORKS: dict[str, Callable[[], Any]] = {
    "hubert": lambda: hf.HubertModel(hf.HubertConfig(**SOUND)),
    "wavlm": lambda: hf.WavLMModel(hf.WavLMConfig(**SOUND)),
    "swin v2": lambda: hf.Swinv2Model(
        hf.Swinv2Config(
            image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
        )
    ),
    "opt 350m": lambda: hf.OPTModel(
        hf.OPTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, vocab_size=50,
            word_embed_proj_dim=32, max_position_embeddings=32, do_layer_norm_before=False,
        )
    ),
    "gemma 2": lambda: hf.Gemma2Model(hf.Gemma2Config(**WORDS, num_key_value_heads=2, head_dim=8)),
    "mamba": lambda: hf.MambaModel(
        hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=50)
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50)
    ),
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**WORDS)),
    "t5": lambda: hf.T5Model(
        hf.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ),
}  # fmt: skip


def make(name: str) -> Any:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


@pytest.mark.parametrize(
    ("name", "norm", "post"),
    [
        ("hubert", "layer_norm", True),
        ("swin v2", "layernorm_before", True),
        ("opt 350m", "self_attn_layer_norm", True),
        ("gemma 2", "pre_feedforward_layernorm", False),
    ],
)
def test_the_norm_before_the_feed_forward_feeds_it(name: str, norm: str, post: bool) -> None:
    network = make(name)
    halves = [h for h in sublayers(network, None, calls(network)) if h.kind == "mlp"]
    assert len(halves) == 2
    for half in halves:
        assert (str(half.norm).rpartition(".")[2], half.post) == (norm, post)


def test_a_pass_changes_nothing_and_may_fail() -> None:
    network = make("hubert").train()
    network.encoder.eval()
    modes = [module.training for module in network.modules()]
    assert calls(network)[0] == ""
    assert calls(network, lambda: network(nonsense=1)) == []
    assert calls(nn.Linear(2, 2)) == []
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("wavlm", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("mamba", {"conv1d", "dt_proj"}),
        ("hubert", set()),
    ],
)
def test_layers_are_found_whose_weights_are_read_without_a_call(
    name: str, leaves: set[str]
) -> None:
    network = make(name)
    kinds = (nn.Linear, nn.Conv1d)
    found = [n for n in uncalled(network) if isinstance(network.get_submodule(n), kinds)]
    assert {n.rpartition(".")[2] for n in found} == leaves


def test_pairs_stand_on_called_layers_only() -> None:
    network = make("mamba")
    ids = {"input_ids": torch.arange(8).reshape(2, 4) + 5}
    model = get_peft_model(network, SSFConfig(init_std=0.3)).eval()
    apart = model(**ids).last_hidden_state
    apart.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.base_model.merge_adapter()
    torch.testing.assert_close(model(**ids).last_hidden_state, apart, atol=1e-5, rtol=1e-4)
    with pytest.raises(BackboneError, match="dt_proj"):
        get_peft_model(make("mamba"), SSFConfig(target_modules=["dt_proj"]))


def test_updates_that_nothing_would_read_are_refused() -> None:
    network = make("wavlm")
    with pytest.raises(BackboneError, match="pego") as error:
        get_peft_model(network, PEGOConfig())
    assert "called" in error.value.expected
    with pytest.raises(BackboneError, match="lora") as error:
        lora.targets(network, lora.Config(method="lora"))
    assert "called" in error.value.expected


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize(
    "config",
    [
        *(PETLASTConfig(variant=v) for v in ("conformer", "prompt", "deep-prompt")),
        *(DVPTConfig(variant=v) for v in ("paper", "repo", "repo-vit")),
    ],
    ids=lambda config: f"{config.peft_type} {config.variant}",
)
def test_what_mixes_tokens_does_not_enter_attention_that_looks_back(name: str, config: Any) -> None:
    network = make(name)
    before = {n: type(m) for n, m in network.named_modules()}
    with pytest.raises(BackboneError, match="looks back only") as error:
        get_peft_model(network, config)
    assert "pfeiffer" in error.value.next_step
    assert {n: type(m) for n, m in network.named_modules()} == before


@pytest.mark.parametrize("variant", ["pfeiffer", "houlsby", "prefix"])
def test_a_later_token_changes_no_earlier_one(tiny: SimpleNamespace, variant: str) -> None:
    model = get_peft_model(make("gpt2"), PETLASTConfig(variant=variant)).eval()
    tiny.stir(model, "petl_", 0.5)
    ids = torch.arange(8)[None] + 5
    other = ids.clone()
    other[0, 5] = 3
    with torch.no_grad():
        first, second = (model(input_ids=x).logits for x in (ids, other))
    assert torch.equal(first[:, :5], second[:, :5])
    assert not torch.equal(first[:, 5:], second[:, 5:])
