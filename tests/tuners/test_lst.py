"""Ladder side-tuning: gates, blocks, no graph in the backbone, the cache."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from galenic import launch, tuners
from galenic.core.errors import BackboneError, ConfigError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened
from galenic.models.prefix import Replay, capture, frozen_prefix
from galenic.tuners._hidden import Hidden, Layout
from galenic.tuners.lst import LSTConfig
from galenic.tuners.lst.network import SideBlock, build, gated


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ladder(states: int = 4, width: int = 16, **settings: Any) -> Any:
    shapes = ((5, width),) * states
    layout = Layout(tuple(f"b{i}" for i in range(states - 1)), shapes, "tokens", width)
    torch.manual_seed(0)
    return build(LSTConfig(**{"reduction_factor": 2, **settings}), layout, nn.Identity()).eval()


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 0.2])
def test_a_gate_is_a_sigmoid_with_temperature(alpha: float) -> None:
    own, rung = draw(1, 2, 3, seed=1), draw(1, 2, 3, seed=2)
    mu = 1 / (1 + math.exp(-alpha / 0.1))
    torch.testing.assert_close(
        gated(own, rung, torch.tensor(alpha), 0.1), mu * rung + (1 - mu) * own
    )


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_block_is_torch_s_own(heads: int) -> None:
    block = SideBlock(8, heads, 2.0, 0.0).eval()
    twin = nn.TransformerEncoderLayer(
        8, heads, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    with torch.no_grad():
        for mine, theirs in (
            (block.norm1, twin.norm1),
            (block.norm2, twin.norm2),
            (block.out, twin.self_attn.out_proj),
            (block.up, twin.linear1),
            (block.down, twin.linear2),
        ):
            theirs.load_state_dict(mine.state_dict())
        twin.self_attn.in_proj_weight.copy_(block.qkv.weight)
        twin.self_attn.in_proj_bias.copy_(block.qkv.bias)
        x = draw(2, 5, 8)
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        found = block(x, (mask != 0)[:, None, None, :])
        # Training mode without dropout: evaluation takes a path that drops padded rows.
        expected = twin.train()(x, src_key_padding_mask=mask == 0)
    torch.testing.assert_close(found[mask == 1], expected[mask == 1])


def test_the_ladder_is_the_paper_step_by_step() -> None:
    net = ladder()
    states = [draw(2, 5, 16, seed=i) for i in range(4)]
    with torch.no_grad():
        net.alpha.copy_(torch.tensor([0.1, -0.2, 0.05]))
        own = net.rungs[0](states[0])
        for i in (1, 2, 3):
            mu = torch.sigmoid(net.alpha[i - 1] / 0.1)
            own = net.blocks[i - 1](mu * net.rungs[i](states[i]) + (1 - mu) * own, None)
        torch.testing.assert_close(net(Hidden(states, None)), net.up(net.norm(own)))


def test_gates_start_half_open_and_the_side_is_an_eighth_as_wide() -> None:
    net = ladder(width=32, reduction_factor=8)
    assert torch.sigmoid(net.alpha / net.temperature).tolist() == [0.5] * 3
    assert {tuple(rung.weight.shape) for rung in net.rungs} == {(4, 32)}
    assert len(net.blocks) == 3


def test_leaving_layers_out_leaves_their_blocks_out() -> None:
    net = ladder(7, layers=[0, 2, 4, 6])
    assert len(net.blocks) == 3
    assert net.layers == (0, 2, 4, 6)


def test_what_stands_at_padding_changes_nothing() -> None:
    net = ladder()
    states = [draw(2, 5, 16, seed=i) for i in range(4)]
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    dirty = [torch.where(mask[..., None] == 0, 50 * draw(2, 5, 16, seed=9), s) for s in states]
    with torch.no_grad():
        clean, other = net(Hidden(states, None, mask)), net(Hidden(dirty, None, mask))
        alone = net(Hidden([state[:1, :3] for state in states], None))
    torch.testing.assert_close(other[mask == 1], clean[mask == 1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(alone, clean[:1, :3], atol=1e-6, rtol=1e-6)
    nothing = torch.zeros_like(mask)
    assert torch.isfinite(net(Hidden(states, None, nothing))).all()


@pytest.mark.parametrize("family", ["vit", "bert", "dinov2", "clip", "distilbert"])
def test_peft_alone_saves_and_loads(tiny: SimpleNamespace, family: str, tmp_path: Path) -> None:
    network = tiny.make(family)
    batch = tiny.inputs(network)
    base = tiny.out(network, batch)
    model = get_peft_model(network, LSTConfig()).eval()
    tiny.stir(model, "lst_")
    new = tiny.out(model, batch)
    assert new.shape == base.shape
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny.make(family), tmp_path).eval()
    assert torch.equal(tiny.out(again, batch), new)
    assert torch.equal(tiny.out(model.unload(), batch), base)


def test_only_the_ladder_trains_and_the_backbone_keeps_no_graph(tiny: SimpleNamespace) -> None:
    model = get_peft_model(tiny.make("bert"), LSTConfig()).train()
    base = model.get_base_model().base_layer
    base.requires_grad_(True)
    model(**tiny.inputs(base)).last_hidden_state.square().mean().backward()
    assert all(p.grad is None for p in base.parameters())
    assert all(p.grad is not None for p in model.get_base_model().sides.parameters())


def test_maps_are_refused_before_anything_changes(tiny: SimpleNamespace) -> None:
    network = tiny.make("swin").train()
    with pytest.raises(BackboneError, match="its states are maps"):
        get_peft_model(network, LSTConfig())
    assert all(p.requires_grad for p in network.parameters())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    "values",
    [
        {"reduction_factor": 0}, {"temperature": 0.0}, {"ratio": 0.0}, {"dropout": 1.0},
        {"layers": "some"},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_a_value_error(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))} is"):
        LSTConfig(**values)


def test_widths_that_do_not_go_are_refused() -> None:
    with pytest.raises(ValueError, match="no channel"):
        ladder(reduction_factor=32)
    with pytest.raises(ValueError, match="does not divide"):
        ladder(heads=3)
    with pytest.raises(ConfigError, match="1 state"):
        ladder(layers=[2])


def test_cached_states_give_the_same_features(tiny: SimpleNamespace) -> None:
    opened = Opened(tiny.make("bert"), InputSpec("input_ids", "tokens", max_length=16))
    backbone = Backbone(opened, "bert", "auto")
    tuners.attach(backbone, tuners.parse_tuner({"method": "lst"}))
    backbone.eval()
    words = {
        "input_ids": torch.arange(16).reshape(2, 8) + 5,
        "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
    }
    block = frozen_prefix(backbone.network)
    with torch.no_grad():
        live = backbone(**words).pooled
        packed = capture(backbone, block, words)
        packed[1, 5:] = 0
        with Replay(backbone, block)(packed):
            cached = backbone(attention_mask=words["attention_mask"]).pooled
    assert torch.equal(cached, live)


def test_a_run_scores_the_same_with_and_without_cache(tmp_path: Path) -> None:
    tables = []
    for cache in (True, False):
        run = launch.run(
            "lst", "sample:icd10", out=tmp_path / str(cache), quick=True, cache=cache,
            overrides=["schedule.precision=fp32"],
        )  # fmt: skip
        tables.append(pd.read_parquet(run.path / "predictions.parquet"))
    scores = [table.filter(like="score").to_numpy() for table in tables]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
