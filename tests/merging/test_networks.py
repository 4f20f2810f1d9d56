"""Merged folders open in the libraries that wrote their parents."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTModel,
)

from galenic.core.errors import WeightsError
from galenic.merging import merge

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def nudged(network: nn.Module, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=draw))
    return tuned


def test_a_language_model_with_tied_weights_in_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    base = GPT2LMHeadModel(config)
    networks = {"base": base, "a": nudged(base, 1), "b": nudged(base, 2)}
    for name, network in networks.items():
        network.save_pretrained(tmp_path / name, max_shard_size="20KB" if name == "a" else "1GB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    recipe = {
        "method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "a"), str(tmp_path / "b")],
        "parameters": {"alpha": 1.0},
        "shard_gb": 3e-5,
    }
    document = merge(recipe, tmp_path / "out")
    assert document["notes"] == []
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.lm_head.weight is merged.transformer.wte.weight
    parameters = [dict(n.named_parameters()) for n in (merged, *networks.values())]
    for name, value in parameters[0].items():
        old, a, b = (found[name] for found in parameters[1:])
        torch.testing.assert_close(value, a + b - old, atol=1e-6, rtol=1e-5)


def test_adapters_are_an_adapter_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ViTModel(ViTConfig(**SMALL, image_size=16, patch_size=8), add_pooling_layer=False)
    for seed, name in enumerate("ab"):
        tuned = get_peft_model(copy.deepcopy(network), LoraConfig(target_modules="all-linear"))
        nudged(tuned, seed).save_pretrained(tmp_path / name)
    recipe = {"method": "linear", "models": [str(tmp_path / "a"), str(tmp_path / "b")]}
    merge(recipe, tmp_path / "out")
    opened = PeftModel.from_pretrained(copy.deepcopy(network), tmp_path / "out")
    assert any("lora_A" in name for name, _ in opened.named_parameters())
    tuned = get_peft_model(copy.deepcopy(network), LoraConfig(target_modules="all-linear", r=4))
    tuned.save_pretrained(tmp_path / "b")
    with pytest.raises(WeightsError, match="adapter of b has r 4, the base's 8"):
        merge(recipe, tmp_path / "out")
