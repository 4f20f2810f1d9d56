"""Rollout and Grad-CAM against loops and hand-made networks."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from torch import nn
from transformers import ViTConfig, ViTModel

from galenic.core.inputs import InputSpec
from galenic.evaluation.saliency import grad_cam, normalised, rollout
from galenic.models.backbone import Backbone, Opened
from galenic.objectives.classification import Classifier
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.mistakes import under
from galenic.tasks._saliency import activated, attended


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(1, 4), heads=st.integers(1, 3))
def test_rows_of_a_rollout_sum_to_one_and_are_those_of_a_loop(
    seed: int, layers: int, heads: int
) -> None:
    torch.manual_seed(seed)
    given = [torch.randn(2, heads, 5, 5).softmax(-1) for _ in range(layers)]
    found = rollout(given)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5))
    for sample in range(2):
        whole = np.eye(5)
        for layer in given:
            mean = sum(layer[sample, head].numpy() for head in range(heads)) / heads
            whole = (0.5 * mean + 0.5 * np.eye(5)) @ whole
        np.testing.assert_allclose(found[sample].numpy(), whole, atol=1e-5)


def test_attention_to_itself_alone_stays_where_it_is() -> None:
    eye = torch.eye(4).expand(1, 2, 4, 4)
    assert torch.equal(rollout([eye, eye])[0], torch.eye(4))


class Channels(nn.Module):
    """Two channels: the picture, and its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1, bias=False)
        self.layer.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layer(pixel_values)


def test_grad_cam_of_a_linear_network_is_its_weighted_picture() -> None:
    spec = InputSpec("pixel_values", "image", 1, (4, 4), None, None)
    backbone = Backbone(Opened(Channels().requires_grad_(False).eval(), spec), "made", "mean")
    head = nn.Linear(2, 3, bias=False)
    weight = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-1.0, 0.0]])
    head.weight.data = weight
    pixels = torch.rand(2, 1, 4, 4) + torch.tensor([0.0, -1.5]).reshape(2, 1, 1, 1)
    objective = Classifier(PooledEncoder(backbone), head, "multiclass").eval()
    said = objective(pixel_values=pixels)["logits"].argmax(1)
    assert said.tolist() == [1, 2]
    found = activated(objective, backbone, {"pixel_values": pixels})
    assert found is not None
    for sample, row in enumerate(said):
        # Logit = mean over 16 pixels of w_0 x - w_1 x: a gradient of w_c / 16 everywhere.
        expected = (weight[row, 0] - weight[row, 1]) / 16 * pixels[sample, 0]
        torch.testing.assert_close(found[sample], expected.relu())
    assert not pixels.requires_grad


def test_a_map_against_the_score_is_nothing() -> None:
    activations = torch.rand(1, 3, 4, 4)
    assert not grad_cam(activations, -torch.ones(1, 3, 4, 4)).any()
    flat = torch.full((1, 3, 3), 0.4)
    assert not normalised(flat).any()
    spread = normalised(torch.rand(2, 3, 3))
    assert (spread.amin((1, 2)) == 0).all()
    assert (spread.amax((1, 2)) == 1).all()


def test_a_transformer_shows_the_patch_that_its_class_token_reads() -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1,
                       intermediate_size=64, image_size=32, patch_size=8)  # fmt: skip
    vit = ViTModel(config, add_pooling_layer=False).eval()
    spec = InputSpec("pixel_values", "image", 3, (32, 32), None, None)
    backbone = Backbone(Opened(vit, spec, pool="cls", prefix_tokens=1), "made", "cls")
    # Queries are one direction; the keys of all tokens but patch 6 are against it.
    attention = vit.layers[0].attention
    attention.q_proj.weight.data.zero_()
    attention.q_proj.bias.data = torch.ones(32) * 3

    def marked(_: nn.Module, __: object, keys: torch.Tensor) -> torch.Tensor:
        given = -torch.ones_like(keys)
        given[:, 1 + 6] = 1.0
        return given

    attention.k_proj.register_forward_hook(marked)
    objective = Classifier(PooledEncoder(backbone), nn.Linear(32, 2), "multiclass").eval()
    before = vit.config._attn_implementation
    found = attended(objective, backbone, {"pixel_values": torch.randn(2, 3, 32, 32)})
    assert found is not None
    assert found.shape == (2, 4, 4)
    assert found.flatten(1).argmax(1).tolist() == [6, 6]
    torch.testing.assert_close(found[:, 1, 2], torch.full((2,), 0.5), atol=1e-3, rtol=0)
    assert vit.config._attn_implementation == before


def test_a_heat_map_leaves_a_cold_picture_cold() -> None:
    grey = Pillow.fromarray(np.full((10, 12), 128, np.uint8))
    heat = np.zeros((2, 2), np.float32)
    heat[0, 1] = 1.0
    found = np.asarray(under(grey, heat))
    assert found.shape == (10, 12, 3)
    assert found[0, -1, 0] > found[-1, 0, 0] + 50
    assert found[-1, 0, 2] > found[0, -1, 2] + 20
