"""Boxes on tensors, the pyramid, and the anchor-free detector."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from galenic.core.errors import BackboneError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened, open_backbone
from galenic.models.detection.boxes import (
    best,
    complete_iou,
    generalised_iou,
    pairwise_iou,
    suppress,
)
from galenic.models.detection.fcos import Fcos
from galenic.models.detection.huggingface import open_detector
from galenic.models.detection.pyramid import Pyramid
from galenic.objectives.detection import Detection, assign, centredness, fcos_losses, focal_loss


def boxes(seed: int, *shape: int, side: float = 60.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=draw) * side
    return torch.cat([low, low + 1 + torch.rand(*shape, 2, generator=draw) * side / 2], -1)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(sizes) - width * height)


def test_overlap_is_that_of_a_double_loop() -> None:
    a, b = boxes(0, 7), boxes(1, 5)
    slow = [[slow_iou(x, y) for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor(slow))


def test_suppression_is_the_greedy_loop() -> None:
    for seed in range(20):
        found = boxes(seed, 1, 40, side=25)[0]
        classes = torch.randint(0, 2, (40,), generator=torch.Generator().manual_seed(seed))
        kept: list[int] = []
        for place in range(40):
            rivals = [k for k in kept if classes[k] == classes[place]]
            if all(slow_iou(found[k].tolist(), found[place].tolist()) <= 0.4 for k in rivals):
                kept.append(place)
        fast = suppress(found[None], classes[None], 0.4)[0]
        assert fast.nonzero().flatten().tolist() == kept


def test_the_best_come_first_and_fill_up_with_none() -> None:
    found = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60]]])
    scores = torch.tensor([[[0.6, 0.1], [0.9, 0.2], [0.3, 0.8]]])
    out = best(found, scores, most=5, candidates=6, threshold=0.5)[0]
    assert out[:4, 5].tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(out[:4, 4], torch.tensor([0.9, 0.8, 0.3, 0.2]))
    assert out[4].tolist() == [*out[4, :4].tolist(), 0.0, -1.0]


def test_generalised_and_complete_overlap_in_closed_form() -> None:
    a, far = torch.tensor([0.0, 0, 2, 2]), torch.tensor([4.0, 0, 6, 2])
    torch.testing.assert_close(generalised_iou(a, a), torch.tensor(1.0))
    torch.testing.assert_close(generalised_iou(a, far), torch.tensor(-(12 - 8) / 12))
    torch.testing.assert_close(complete_iou(a, a), torch.tensor(1.0))
    torch.testing.assert_close(complete_iou(a, far), torch.tensor(-16 / 40))
    flat = torch.tensor([0.0, 0.5, 2, 1.5])  # same centre, half as high
    shape = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    expected = 0.5 - shape * shape / (1 - 0.5 + shape)
    torch.testing.assert_close(complete_iou(a, flat), torch.tensor(expected))


def test_losses_of_overlap_have_gradients_where_boxes_do_not_touch() -> None:
    for overlap in (generalised_iou, complete_iou):
        a = torch.tensor([0.0, 0, 2, 2], requires_grad=True)
        overlap(a, torch.tensor([9.0, 0, 11, 2])).backward()
        assert a.grad is not None and a.grad[2] > 0


def test_focal_loss_without_focus_is_half_of_cross_entropy() -> None:
    logits, targets = torch.randn(9), torch.randint(0, 2, (9,)).float()
    plain = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(focal_loss(logits, targets, alpha=0.5, gamma=0.0), plain / 2)


# Targets -----------------------------------------------------------------------------------


def grid(size: int, strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    places, which = [], []
    for stride in strides:
        for y in range(size // stride):
            for x in range(size // stride):
                places.append([(x + 0.5) * stride, (y + 0.5) * stride])
                which.append(float(stride))
    return torch.tensor(places), torch.tensor(which)


def test_places_answer_for_boxes_as_the_rule_says() -> None:
    places, strides = grid(128, (8, 16, 32))
    found = boxes(3, 2, 6, side=90)
    classes = torch.tensor([[0, 1, 0, 1, 0, 1], [0, 0, -1, -1, -1, -1]])
    which, sides = assign(places, strides, found, classes)
    for image in range(2):
        for n, ((x, y), stride) in enumerate(zip(places.tolist(), strides.tolist(), strict=True)):
            able = []
            for m, (x1, y1, x2, y2) in enumerate(found[image].tolist()):
                four = [x - x1, y - y1, x2 - x, y2 - y]
                low = 0 if stride == 8 else 8 * stride / 2
                high = math.inf if stride == 32 else 8 * stride
                near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
                if classes[image, m] >= 0 and min(four) > 0 and near and low < max(four) <= high:
                    able.append(((x2 - x1) * (y2 - y1), m, four))
            assert which[image, n] == (min(able)[1] if able else -1)
            if able:
                torch.testing.assert_close(sides[image, n], torch.tensor(min(able)[2]))
    assert (which[0] >= 0).any() and which[1].max() <= 1


def test_the_centre_of_a_box_is_worth_one() -> None:
    sides = torch.tensor([[3.0, 2, 3, 2], [1, 2, 4, 2]])
    torch.testing.assert_close(centredness(sides), torch.tensor([1.0, 0.5]))


# The network ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Backbone:
    """Three stages of a small convolutional network, strides 4 to 16."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (3, 8, 12, 16)
            self.stages = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, 4 if a == 3 else 2, 1), nn.BatchNorm2d(b), nn.ReLU()
                )
                for a, b in zip(widths[:-1], widths[1:], strict=True)
            )

        def forward(self, pixel_values: Tensor) -> Tensor:
            for stage in self.stages:
                pixel_values = stage(pixel_values)
            return pixel_values

    torch.manual_seed(0)
    spec = InputSpec("pixel_values", "image", 3, (64, 64))
    return Backbone(Opened(Small(), spec), "small", "auto")


def test_every_stride_has_its_map_and_absent_ones_are_made(network: Backbone) -> None:
    pyramid = Pyramid(network, 16, (4, 8, 16, 32))
    maps = pyramid(torch.randn(2, 3, 64, 64))
    assert [tuple(state.shape) for state in maps] == [
        (2, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32)
    ]
    assert pyramid.places == {4: "stages.0", 8: "stages.1", 16: "stages.2"}
    assert pyramid.sources == (4, 8, 16, 16)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_transformer_gives_one_map_for_all() -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
    )
    spec = InputSpec("pixel_values", "image", 3, (64, 64))
    opened = Opened(ViTModel(config), spec, pool="cls", prefix_tokens=1)
    detector = Fcos(Backbone(opened, "vit", "auto"), 2, width=16, strides=(8, 16))
    raw = detector(torch.randn(2, 3, 64, 64))
    assert raw.logits.shape == (2, 64 + 16, 2)
    raw.logits.sum().backward()
    assert all(
        p.grad is not None for n, p in detector.backbone.named_parameters() if "pooler" not in n
    )


def test_a_network_without_maps_is_refused() -> None:
    class Flat(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return pixel_values.mean((2, 3))

    spec = InputSpec("pixel_values", "image", 3, (32, 32))
    with pytest.raises(BackboneError, match="no map"):
        Pyramid(Backbone(Opened(Flat(), spec), "flat", "auto"), 8, (8,))


def test_a_frozen_network_keeps_its_statistics(network: Backbone) -> None:
    network.requires_grad_(False)
    try:
        detector = Fcos(network, 1, width=16, strides=(8, 16)).train()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        detector(torch.randn(4, 3, 64, 64))
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    finally:
        network.requires_grad_(True)


def test_images_without_boxes_have_a_class_loss_alone(network: Backbone) -> None:
    detector = Fcos(network, 2, width=16, strides=(8, 16))
    for most in (0, 3):
        none = torch.zeros(2, most, 4), torch.full((2, most), -1)
        losses = fcos_losses(detector(torch.randn(2, 3, 64, 64)), *none, "giou")
        assert losses["box"] == 0 and losses["centre"] == 0
        assert torch.isfinite(losses["class"]) and losses["class"] > 0


def test_places_are_exact_in_half_precision() -> None:
    detector = Fcos(open_backbone("builtin:resnet10?width=4", size=(1536, 32)), 1, width=8).eval()
    pixels = torch.randn(1, 3, 1536, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        raw = detector(pixels)
    places = grid(1536, (8,))[0]
    assert torch.equal(raw.places[: 192 * 4], places[places[:, 0] < 32])
    assert raw.strides.unique().tolist() == [8, 16, 32]
    assert raw.boxes.dtype == torch.float32


def test_a_detector_learns_two_images_by_heart(network: Backbone) -> None:
    torch.manual_seed(0)
    pixels = torch.zeros(2, 3, 64, 64)
    pixels[0, :, 10:30, 20:44] = 1
    where, names = torch.tensor([[[20.0, 10, 44, 30]], [[0, 0, 0, 0]]]), torch.tensor([[1], [-1]])
    objective = Detection(Fcos(network, 2, width=16, strides=(8, 16)))
    optimiser = torch.optim.AdamW(objective.parameters(), 5e-3)
    for _ in range(80):
        optimiser.zero_grad()
        objective(pixels, where, names)["loss"].backward()
        optimiser.step()
    found = objective.eval()(pixels)["detections"]
    assert found.shape == (2, 100, 6)
    assert found[0, 0, 5] == 1 and found[0, 0, 4] > 0.4
    assert slow_iou(found[0, 0, :4].tolist(), where[0, 0].tolist()) > 0.7
    assert found[1, 0, 4] < 0.3


# Detectors of transformers -------------------------------------------------------------------


def yolos() -> Any:
    from transformers import YolosConfig, YolosForObjectDetection

    return YolosForObjectDetection(
        YolosConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            image_size=[64, 64], num_detection_tokens=8, num_labels=5,
        )
    )  # fmt: skip


def on_a_cnn(kind: str) -> Any:
    import transformers

    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone, d_model=32, encoder_hidden_dim=32, decoder_layers=2,
        encoder_in_channels=[24, 32, 48], encoder_ffn_dim=32, encoder_attention_heads=2,
        decoder_attention_heads=2, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32,
        num_queries=8, num_denoising=0, num_labels=5,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


BUILDS = [yolos, partial(on_a_cnn, "DFine"), partial(on_a_cnn, "RTDetrV2")]


@pytest.mark.parametrize("build", BUILDS, ids=["yolos", "d-fine", "rt-detr-v2"])
def test_detectors_of_transformers_get_a_head_for_the_classes(build, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "detector")
    for variant in ("", "#random"):
        detector = open_detector(f"{tmp_path / 'detector'}{variant}", ("a", "b"))
        objective = Detection(detector).train()
        where = torch.tensor([[[8.0, 8, 40, 40]], [[0, 0, 0, 0]]])
        loss = objective(torch.randn(2, 3, 64, 64), where, torch.tensor([[1], [-1]]))["loss"]
        loss.backward()
        assert torch.isfinite(loss)
        found = objective.eval()(torch.randn(2, 3, 64, 64))["detections"]
        assert found.shape == (2, 100, 6)
        assert set(np.unique(found[..., 5].detach())) <= {-1.0, 0.0, 1.0}
        assert found[..., :4].min() >= 0 and found[..., :4].max() <= 64


def test_a_detector_that_is_not_here_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match="could not be opened"):
        open_detector(str(tmp_path), ("a",))
