"""What peft asks of every tuner: loading without memory, heads that are trained whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from galenic import tuners
from galenic.tuners.dvpt import DVPTConfig
from galenic.tuners.lst import LSTConfig
from galenic.tuners.pego import PEGOConfig
from galenic.tuners.petl_ast import PETLASTConfig
from galenic.tuners.sara import SaRAConfig
from galenic.tuners.ssf import SSFConfig
from galenic.tuners.unipt import UniPTConfig


@pytest.mark.parametrize(
    "config",
    [
        PETLASTConfig(), PETLASTConfig(variant="houlsby"), PETLASTConfig(variant="prefix"),
        DVPTConfig(), LSTConfig(), UniPTConfig(), SSFConfig(), PEGOConfig(rank=2),
    ],
    ids=lambda config: f"{config.peft_type} {getattr(config, 'variant', '')}",
)  # fmt: skip
def test_loaded_with_low_memory_it_is_the_same(
    tiny: SimpleNamespace, config: Any, tmp_path: Path
) -> None:
    network = tiny.make("vit")
    batch = tiny.inputs(network)
    model = get_peft_model(network, config).eval()
    tiny.stir(model, f"{config.peft_type.lower()}_".replace("petl_ast_", "petl_"))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny.make("vit"), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(tiny.out(again, batch), tiny.out(model, batch))


def classifier() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    network = hf.ViTForImageClassification(config).eval()
    network.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 2))
    return network.eval(), {"pixel_values": torch.randn(2, 3, 32, 32)}


HEADS = [
    SaRAConfig(proportion=0.1, modules_to_save=["classifier"]),
    SSFConfig(modules_to_save=["classifier"]),
    PETLASTConfig(modules_to_save=["classifier"]),
    DVPTConfig(modules_to_save=["classifier"]),
]


@pytest.mark.parametrize("config", HEADS, ids=lambda config: config.peft_type)
def test_a_head_of_several_layers_comes_out_again(config: Any) -> None:
    network, batch = classifier()
    model = get_peft_model(network, config).eval()
    plain = model.unload()
    assert not any(isinstance(m, ModulesToSaveWrapper) for m in plain.modules())
    assert plain(**batch).logits.shape == (2, 2)


@pytest.mark.parametrize("config", HEADS, ids=lambda config: config.peft_type)
def test_a_head_that_trains_draws_its_dropout(config: Any) -> None:
    model = get_peft_model(classifier()[0], config).train()
    head = model.get_base_model().classifier.modules_to_save["default"]
    assert all(module.training for module in head.modules())


def test_the_biases_of_recurrent_layers_train_too() -> None:
    backbone: Any = SimpleNamespace(network=nn.ModuleDict({"rnn": nn.LSTM(4, 4, 2)}))
    tuners.attach(backbone, tuners.parse_tuner({"method": "bitfit"}))
    trained = {n for n, p in backbone.network.named_parameters() if p.requires_grad}
    assert trained == {f"rnn.bias_{side}_l{layer}" for side in ("ih", "hh") for layer in (0, 1)}
