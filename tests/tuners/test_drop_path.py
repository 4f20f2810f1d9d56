"""Stochastic depth: rates, what is left out, and where it cannot go."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, SwinConfig, SwinModel, ViTConfig, ViTModel

from galenic import tuners
from galenic.core.errors import BackboneError
from galenic.models.backbone import open_backbone
from galenic.tuners._drop_path import DropPath, place_drop_path

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def vit() -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(**SMALL, image_size=16, patch_size=8)
    return ViTModel(config, add_pooling_layer=False).eval()


def rates(network: nn.Module) -> list[float]:
    return [
        hook.rate
        for module in network.modules()
        for hook in module._forward_hooks.values()
        if isinstance(hook, DropPath)
    ]


@pytest.mark.parametrize("make", [vit, lambda: BertModel(BertConfig(**SMALL, vocab_size=20))])
def test_rates_rise_in_a_straight_line_over_both_branches(make) -> None:
    network = make()
    place_drop_path(network, 0.2)
    assert rates(network) == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2])
    place_drop_path(network, 0.4)
    assert rates(network) == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.4, 0.4])
    place_drop_path(network, 0.0)
    assert rates(network) == []


def test_nothing_is_left_out_in_evaluation() -> None:
    network, pixels = vit(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = network(pixels).last_hidden_state
        place_drop_path(network, 0.9)
        assert torch.equal(network(pixels).last_hidden_state, before)


def test_a_branch_left_out_leaves_the_residual_and_whole_samples_go() -> None:
    hook, linear = DropPath(0.25), nn.Linear(4, 4).train()
    linear.register_forward_hook(hook)
    torch.manual_seed(0)
    x = torch.randn(1, 5, 4).expand(4000, -1, -1)
    with torch.no_grad():
        out = linear(x)
        whole = nn.functional.linear(x[:1], linear.weight, linear.bias)
    kept = out.abs().sum(dim=(1, 2)) > 0
    torch.testing.assert_close(out[kept], (whole / 0.75).expand(int(kept.sum()), -1, -1))
    assert abs(kept.float().mean() - 0.75) < 5 * (0.75 * 0.25 / 4000) ** 0.5


def test_full_fine_tuning_takes_it_and_stages_do_not_add_it_up() -> None:
    backbone = open_backbone("builtin:vit?width=16&depth=3&heads=2&image=16&patch=8")
    config = tuners.parse_tuner({"method": "full", "drop_path": 0.2})
    tuners.attach(backbone, config)
    tuners.attach(backbone, config)
    assert len(rates(backbone.network)) == 6


def test_windows_and_convolutions_are_refused() -> None:
    swin = SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2],
                   window_size=4)
    )  # fmt: skip
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    for network in (swin, plain):
        with pytest.raises(BackboneError, match="drop_path"):
            place_drop_path(network, 0.1)
