"""Weights from packages, against plain references."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from galenic.core.errors import WeightsError
from galenic.models.backbone import open_backbone
from galenic.models.builtin import mobilenet_v2, vit_tiny

# A human-like heavy chain.
HEAVY = (
    "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAYMELSSLRSED"
    "TAVYYCAAPYCSSISCNDGFDIWGQGTMVTVS"
)


def plain_mobilenet(weights: dict[str, Tensor], state: Tensor) -> Tensor:
    """MobileNetV2 written out over torchvision's names."""

    def unit(x: Tensor, conv: str, norm: str, stride: int = 1, act: bool = True) -> Tensor:
        kernel = weights[f"{conv}.weight"]
        groups = x.shape[1] if kernel.shape[1] == 1 else 1
        x = functional.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
        mean, var, scale, shift = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = functional.batch_norm(x, mean, var, scale, shift)
        return functional.relu6(x) if act else x

    state = unit(state, "features.0.0", "features.0.1", stride=2)
    for place in range(1, 18):
        at, x = f"features.{place}.conv", state
        step = 0
        if place > 1:
            x, step = unit(x, f"{at}.0.0", f"{at}.0.1"), 1
        stride = 2 if place in (2, 4, 7, 14) else 1
        x = unit(x, f"{at}.{step}.0", f"{at}.{step}.1", stride)
        x = unit(x, f"{at}.{step + 1}", f"{at}.{step + 2}", act=False)
        state = state + x if x.shape == state.shape else x
    return unit(state, "features.18.0", "features.18.1")


def test_mobilenet_is_torchvisions() -> None:
    pytest.importorskip(mobilenet_v2.PACKAGE.replace("-", "_") + ".weights")
    backbone = open_backbone("builtin:mobilenet-v2").eval()
    pixels = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = backbone(pixel_values=pixels)
        theirs = plain_mobilenet(mobilenet_v2._weights(), pixels)
    torch.testing.assert_close(ours.pooled, theirs.mean((2, 3)), atol=1e-4, rtol=1e-4)
    assert backbone.width == 1280
    assert (backbone.grid, backbone.stride) == ((7, 7), 32)


def test_weights_of_another_width_are_refused() -> None:
    network = open_backbone("builtin:mobilenet-v2#random").network
    target = network.state_dict()
    wide = {
        f"features.{place}.{name.rpartition('.')[2]}": torch.cat([t, t]) if t.ndim else t
        for place, (name, t) in enumerate(target.items())
    }
    with pytest.raises(WeightsError, match=r"of \d+ tensors"):
        mobilenet_v2.from_torchvision(wide, target)


def test_antiberty_recovers_masked_residues() -> None:
    pytest.importorskip("antiberty")
    from transformers import BertForMaskedLM

    from galenic.models.builtin._package import package_folder

    backbone = open_backbone("builtin:antiberty").eval()
    folder = package_folder("antiberty", "proteins") / "trained_models/AntiBERTy_md_smooth"
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    network = BertForMaskedLM(backbone.network.config).eval()
    network.load_state_dict(
        {n: t for n, t in weights.items() if n.startswith("cls.predictions")}, strict=False
    )
    network.bert = backbone.network
    places = range(2, 102, 5)
    whole = backbone.tokenize([HEAVY])["input_ids"][0]
    masked = backbone.tokenize([HEAVY[:at] + "_" + HEAVY[at + 1 :] for at in places])
    with torch.no_grad():
        named = network(**masked).logits.argmax(-1)
    right = sum(int(named[row, at + 1] == whole[at + 1]) for row, at in enumerate(places))
    assert len(whole) == len(HEAVY) + 2
    assert right >= 18


def test_vit_tiny_is_small_and_whole() -> None:
    file = Path(vit_tiny.__file__).parent / vit_tiny.FILE
    assert file.stat().st_size <= 12 * 10**6
    trained = open_backbone("builtin:vit-tiny").eval()
    untrained = open_backbone("builtin:vit-tiny#random").eval()
    stored = load_file(file)
    state = trained.network.state_dict()
    assert stored.keys() == state.keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())
    assert trained.fingerprint != untrained.fingerprint


def test_vit_tiny_reads_other_sides_and_channels() -> None:
    large = open_backbone("builtin:vit-tiny", size=224).eval()
    assert large.grid == (14, 14)
    grey = open_backbone("builtin:vit-tiny", channels=1).eval()
    with torch.no_grad():
        assert grey(**grey.example(2)).pooled.shape == (2, 192)
