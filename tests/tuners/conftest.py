"""Tiny networks of many families, for tuners that find their way by structure."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
DINO = {**VISION, "mlp_ratio": 2}


def vit() -> nn.Module:
    return hf.ViTModel(hf.ViTConfig(**VISION), add_pooling_layer=False)


def bert() -> nn.Module:
    return hf.BertModel(hf.BertConfig(**SMALL, vocab_size=50), add_pooling_layer=False)


def ast() -> nn.Module:
    config = hf.ASTConfig(**SMALL, max_length=40, num_mel_bins=24, patch_size=8, time_stride=8,
                          frequency_stride=8)  # fmt: skip
    return hf.ASTModel(config)


def swin() -> nn.Module:
    config = hf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    return hf.SwinModel(config, add_pooling_layer=False)


def segformer() -> nn.Module:
    config = hf.SegformerConfig(
        hidden_sizes=[16, 32], depths=[2, 1], num_encoder_blocks=2, num_attention_heads=[1, 2],
        sr_ratios=[2, 1], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2],
    )  # fmt: skip
    return hf.SegformerModel(config)


def distilbert() -> nn.Module:
    config = hf.DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=64, vocab_size=50)
    return hf.DistilBertModel(config)


class FusedAttention(nn.Module):
    """Attention with one layer for queries, keys and values, as timm has it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FusedBlock(nn.Module):
    """A block in timm's layout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(32), FusedAttention()
        self.norm2 = nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor, _: None = None) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Fused(nn.Module):
    """A transformer that is nobody's: no config, tokens as its output."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 32, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 32))
        self.blocks = nn.Sequential(*(FusedBlock() for _ in range(3)))
        self.norm = nn.LayerNorm(32)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.norm(self.blocks(tokens))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "ast": ast,
    "bert": bert,
    "deit": lambda: hf.DeiTModel(hf.DeiTConfig(**VISION), add_pooling_layer=False),
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**DINO)),
    "dinov2 with registers": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**DINO)
    ),
    "clip": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION)),
    "roberta": lambda: hf.RobertaModel(
        hf.RobertaConfig(**SMALL, vocab_size=50), add_pooling_layer=False
    ),
    "distilbert": distilbert,
    "timm-like": Fused,
    "swin": swin,
    "segformer": segformer,
}


def make(family: str) -> nn.Module:
    """The same weights every time; norms and biases away from one and zero."""
    torch.manual_seed(0)
    network = FAMILIES[family]().eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def inputs(network: nn.Module, count: int = 2) -> dict[str, Tensor]:
    """A batch for it."""
    draw = torch.Generator().manual_seed(1)
    key = network.main_input_name
    if key == "input_ids":
        ids = torch.randint(5, 50, (count, 8), generator=draw)
        return {key: ids, "attention_mask": torch.ones_like(ids)}
    if key == "input_values":
        return {key: torch.randn(count, 40, 24, generator=draw)}
    return {key: torch.randn(count, 3, 32, 32, generator=draw)}


def out(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Its last tokens or map."""
    with torch.no_grad():
        output = network(**batch)
    return output if isinstance(output, Tensor) else output.last_hidden_state


def stir(model: nn.Module, prefix: str, size: float = 0.1) -> None:
    """What an adapter trains, as after a training."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if prefix in name or ".modules_to_save." in name:
                parameter.add_(size * torch.randn(parameter.shape, generator=draw))


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """`make(family)`, `inputs(network)`, `out(network, batch)`, `stir(model, prefix)`."""
    return SimpleNamespace(make=make, inputs=inputs, out=out, stir=stir, families=tuple(FAMILIES))
