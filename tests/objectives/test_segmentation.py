"""Losses and overlaps of masks; decoders and the maps that they stand on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, SwinConfig, SwinModel, ViTConfig, ViTModel

from galenic.core.errors import BackboneError
from galenic.data import augment
from galenic.data.augment import AugmentConfig
from galenic.data.masks import moved, nearest
from galenic.models.backbone import open_backbone
from galenic.models.decoders import LinearDecoder, UNetDecoder
from galenic.models.maps import as_map, find, maps
from galenic.objectives.segmentation import Segmenter, dice_loss, overlap
from galenic.pipeline.maps import MapEncoder


def test_dice_loss_is_that_of_monai() -> None:
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 9, 7), torch.randint(0, 4, (3, 9, 7))
    theirs = losses.DiceLoss(include_background=False, softmax=True, to_onehot_y=True, batch=True)(
        logits, labels[:, None]
    )
    torch.testing.assert_close(dice_loss(logits, labels), theirs)


def test_dice_loss_at_its_ends() -> None:
    labels = torch.randint(0, 3, (2, 8, 8))
    sure = 50 * nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert dice_loss(sure, labels).item() == pytest.approx(0, abs=1e-4)
    nowhere = torch.zeros(2, 8, 8).long()
    assert dice_loss(sure.roll(1, 1), labels).item() > 0.5
    background = torch.tensor([50.0, 0, 0]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert dice_loss(background, nowhere).item() == pytest.approx(0, abs=1e-4)


def test_overlap_counts() -> None:
    ours, true = torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[1, 1], [2, 0]]])
    assert overlap(ours, true, 3).tolist() == [[[1, 1, 2], [1, 2, 1]]]


def test_evaluation_gives_overlaps_instead_of_logits() -> None:
    backbone = open_backbone("builtin:resnet10?width=4", size=64)
    backbone.requires_grad_(False)
    encoder = MapEncoder(backbone, 3)
    decoder = UNetDecoder([shape[0] for shape in encoder.shapes], 3, (64, 64), 16)
    model = Segmenter(encoder, decoder).train()
    pixels, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    loss = model(labels=labels, pixel_values=pixels)["loss"]
    loss.backward()
    assert all(p.grad is not None for p in decoder.parameters())
    assert not any(m.training for m in backbone.network.modules())
    model.eval()
    assert set(model(labels=labels, pixel_values=pixels)) == {"loss", "overlap"}
    live = model(pixel_values=pixels)["logits"]
    packed = torch.from_numpy(np.stack(encoder.pack({"pixel_values": pixels})))
    torch.testing.assert_close(model(packed=packed)["logits"], live)


def test_linear_decoder_is_one_matrix_a_position() -> None:
    decoder = LinearDecoder([5], 2, (6, 8)).eval()
    state = torch.randn(1, 5, 6, 8)
    by_hand = torch.empty(2, 6, 8)
    weight, bias = decoder.classify.weight[:, :, 0, 0], decoder.classify.bias
    for i in range(6):
        for j in range(8):
            by_hand[:, i, j] = weight @ (state[0, :, i, j] / (1 + 1e-5) ** 0.5) + bias
    torch.testing.assert_close(decoder([state])[0], by_hand)


@pytest.fixture(scope="module")
def transformers_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    small = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2}
    networks = {
        "vit": ViTModel(ViTConfig(**small, intermediate_size=32, image_size=32, patch_size=8)),
        "dinov2": Dinov2Model(Dinov2Config(**small, image_size=28, patch_size=7)),
        "swin": SwinModel(
            SwinConfig(
                image_size=32, patch_size=2, embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2],
                window_size=4,
            )
        ),
    }  # fmt: skip
    folders = {}
    for name, network in networks.items():
        folders[name] = tmp_path_factory.mktemp(name)
        network.save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_last_blocks_of_a_network_of_one_resolution(name: str, transformers_of) -> None:
    backbone = open_backbone(str(transformers_of[name])).eval()
    places = find(backbone, 3)
    assert [place.rsplit(".", 1)[1] for place in places] == ["2", "3"]
    pixels = torch.randn(2, 3, *backbone.inputs.size)
    with torch.no_grad():
        found = maps(backbone, places, {"pixel_values": pixels})
        outputs = backbone.network(pixels, output_hidden_states=True)
    for one, state in zip(found, outputs.hidden_states[3:5], strict=False):
        torch.testing.assert_close(one, state[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    last = outputs.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(found[-1], last)
    with pytest.raises(BackboneError, match="has 5 levels of features; 6"):
        find(backbone, 6)


def test_pyramids_step_down_by_twos(transformers_of) -> None:
    for spec, sides in (
        (str(transformers_of["swin"]), [16, 8, 4]),
        ("builtin:resnet10?width=4", [16, 8, 4, 2]),
    ):
        backbone = open_backbone(spec, size=32 if "swin" in spec else 64).eval()
        found = maps(backbone, find(backbone, len(sides)), backbone.example())
        assert [one.shape[-1] for one in found] == sides


def test_what_is_no_map() -> None:
    assert as_map(torch.zeros(2, 5, 8), (32, 32), 1).shape == (2, 8, 2, 2)
    assert as_map(torch.zeros(2, 6, 8), (32, 32), 1) is None
    assert as_map(torch.zeros(2, 8, 4, 8), (32, 64), 0).shape == (2, 8, 4, 8)
    assert as_map(torch.zeros(2, 8, 4, 8), (32, 32), 0) is None
    assert as_map(torch.zeros(2, 8), (32, 32), 0) is None


def test_a_mask_moves_as_its_picture() -> None:
    rng = np.random.default_rng(0)
    codes = np.repeat(np.repeat(rng.integers(0, 4, (8, 8)), 4, 0), 4, 1)
    config = AugmentConfig(flip=True, turns=True, shift=0.2, intensity=0.3, noise=0.1)
    seen = set()
    for seed in range(12):
        draw = augment.draw(config, np.random.default_rng(seed), (1, 32, 32))
        seen.add((draw["flip"], draw["turns"]))
        still = draw | {"gain": 1.0, "offset": 0.0, "noise": (0.0, 0), "dropped": []}
        pictured = augment.apply(codes[None].astype(np.float32), still)[0]
        np.testing.assert_array_equal(moved(codes, draw, 4), pictured.astype(int))
    assert len(seen) > 4


def test_nearest_keeps_codes() -> None:
    codes = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(nearest(codes, (6, 8)), codes.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(nearest(codes, (3, 2)), codes[:, [1, 3]])
