"""Names of a vision transformer's tensors in two libraries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from galenic.core.errors import WeightsError
from galenic.models.vit_keys import from_timm, to_timm

WIDTH, HEADS, PATCH, SIDE = 24, 3, 4, 12


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(b, n, WIDTH))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH, 1e-6), Attention()
        self.norm2 = nn.LayerNorm(WIDTH, 1e-6)
        layers = {"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)}
        self.mlp = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class TimmVit(nn.Module):
    """What timm's VisionTransformer without a head computes, under its names."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (SIDE // PATCH) ** 2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))


def vit(pooler: bool = False) -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, layer_norm_eps=1e-6,
        intermediate_size=4 * WIDTH, image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    return ViTModel(config, add_pooling_layer=pooler).eval()


def test_a_network_of_the_other_library_computes_the_same() -> None:
    ours, theirs = vit(), TimmVit().eval()
    theirs.load_state_dict(to_timm(ours.state_dict()), strict=True)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels), ours(pixels).last_hidden_state)


def test_there_and_back_is_the_same_to_the_bit() -> None:
    state = vit().state_dict()
    back = from_timm(to_timm(state))
    vit().load_state_dict(back, strict=True)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_a_pooler_is_left_out_and_a_strange_name_refused() -> None:
    state = vit(pooler=True).state_dict()
    assert set(to_timm(state)) == set(TimmVit().state_dict())
    with pytest.raises(WeightsError, match="lambda1"):
        to_timm({"layers.0.layer_scale1.lambda1": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"head\.weight"):
        from_timm({"head.weight": torch.ones(1)})
