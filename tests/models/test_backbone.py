"""Opening networks: families, channels, sizes, and files that would run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from galenic.core.errors import BackboneError, GalenicError, WeightsError
from galenic.models.anatomy import anatomy, depths
from galenic.models.backbone import open_backbone

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**SMALL, intermediate_size=64, image_size=32, patch_size=8)).save_pretrained(
        folder
    )
    return folder


def test_vit_is_described(vit_folder: Path) -> None:
    backbone = open_backbone(str(vit_folder))
    assert (backbone.width, backbone.grid, backbone.stride) == (32, (4, 4), 8)
    assert backbone.prefix_tokens == 1
    assert backbone.inputs.size == (32, 32)


def test_positions_are_interpolated_to_another_size(vit_folder: Path) -> None:
    backbone = open_backbone(str(vit_folder), size=48).eval()
    assert backbone.grid == (6, 6)
    assert backbone(pixel_values=torch.zeros(1, 3, 48, 48)).pooled.shape == (1, 32)


@pytest.mark.parametrize("channels", [1, 5, 12])
def test_grey_in_any_number_of_channels_gives_the_same_response(
    vit_folder: Path, channels: int
) -> None:
    old = open_backbone(str(vit_folder)).eval()
    new = open_backbone(str(vit_folder), channels=channels).eval()
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        before = old(pixel_values=grey.expand(-1, 3, -1, -1)).pooled
        after = new(pixel_values=grey.expand(-1, channels, -1, -1)).pooled
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert len(new.inputs.mean or ()) == channels


def test_slices_of_a_volume_are_averaged(vit_folder: Path) -> None:
    backbone = open_backbone(str(vit_folder)).eval()
    volume = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        pooled = backbone(pixel_values=volume).pooled
        single = torch.stack([backbone(pixel_values=volume[:, i]).pooled for i in range(4)])
    torch.testing.assert_close(pooled, single.mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "network",
    [
        ViTModel(ViTConfig(**SMALL, intermediate_size=64, image_size=32, patch_size=8)),
        Dinov2Model(Dinov2Config(**SMALL, image_size=32, patch_size=8)),
        BertModel(BertConfig(**SMALL, intermediate_size=64, vocab_size=30)),
    ],
    ids=["vit", "dinov2", "bert"],
)
def test_blocks_are_found_and_depths_rise(network: torch.nn.Module) -> None:
    parts = anatomy(network)
    assert len(parts.blocks) == 3
    assert parts.family == "transformer"
    found = depths(network)
    assert set(found) == {name for name, _ in network.named_parameters()}
    inside = [found[n] for n, _ in network.named_parameters() if n.startswith(parts.blocks)]
    assert inside == sorted(inside)
    assert (min(inside), max(inside)) == (1, 3)


def test_imagenet_network_of_a_package_opens() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    backbone = open_backbone("builtin:efficientnet-lite0")
    assert (backbone.width, backbone.grid, backbone.stride) == (1280, (7, 7), 32)
    assert len(anatomy(backbone.network).blocks) == 16


def test_a_pickle_that_would_run_code_is_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    BertConfig(**SMALL, intermediate_size=64, vocab_size=30).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(WeightsError, match="would run code"):
        open_backbone(str(tmp_path))
    assert not marker.exists()


def test_a_text_network_refuses_pictures() -> None:
    with pytest.raises(BackboneError, match="reads tokens"):
        open_backbone("builtin:minilm", modality="image")


def test_random_weights_are_another_network(vit_folder: Path) -> None:
    known, random = open_backbone(str(vit_folder)), open_backbone(f"{vit_folder}#random")
    assert known.fingerprint != random.fingerprint
    assert known.width == random.width


@pytest.mark.parametrize("spec", ["builtin:nothing", "zoo:thing", "monai:Nothing"])
def test_an_unknown_network_is_a_clear_error(spec: str) -> None:
    with pytest.raises(GalenicError) as error:
        open_backbone(spec)
    assert spec.partition(":")[2] in error.value.message


@pytest.mark.parametrize("size", [[32], [32, 32, 32]])
def test_a_size_has_the_sides_that_the_network_reads(size: list[int]) -> None:
    with pytest.raises(BackboneError, match="reads 2"):
        open_backbone("builtin:resnet10?width=4", modality="image", size=size)
