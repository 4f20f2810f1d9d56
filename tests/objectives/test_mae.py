"""The masked autoencoder: what is hidden is never seen, and nothing else is judged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SwinConfig,
    SwinModel,
)

from galenic.core.errors import BackboneError, ConfigError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Opened, open_backbone
from galenic.objectives import pretraining
from galenic.objectives.pretraining import _masking as masking
from galenic.objectives.pretraining._autoencoder import MaskedAutoencoder
from galenic.objectives.pretraining._decoder import Block, Decoder
from galenic.objectives.pretraining._patches import patchify, take, unpatchify
from galenic.objectives.pretraining._positions import sin_cos
from galenic.objectives.pretraining._vit import PatchEncoder

SPEC = "builtin:vit?width=32&depth=2&heads=2&image=32&patch=8"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def vit(spec: str = SPEC) -> Backbone:
    torch.manual_seed(0)
    return open_backbone(spec)


def autoencoder(backbone: Backbone | None = None, **settings: object) -> MaskedAutoencoder:
    values = {
        "method": "mae",
        "mask_ratio": 0.75,
        "decoder": {"dim": 24, "depth": 2, "heads": 2},
        **settings,
    }
    found = pretraining.build(backbone or vit(), pretraining.parse(values), 0)
    assert isinstance(found, MaskedAutoencoder)
    return found


def batch(size: int = 3, side: int = 32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(size, 3, side, side, generator=draw)
    return {"pixel_values": pixels, "draws": torch.arange(size)}


# Patches --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 2),
)
def test_patches_are_put_together_again(sides: list[tuple[int, int]], c: int, b: int) -> None:
    grid, patch = [g for g, _ in sides], [p for _, p in sides]
    pixels = torch.randn(b, c, *(g * p for g, p in sides))
    patches = patchify(pixels, patch)
    assert patches.shape == (b, math.prod(grid), math.prod(patch) * c)
    assert torch.equal(unpatchify(patches, patch, grid), pixels)


def test_patches_stand_row_by_row_with_channels_last() -> None:
    pixels = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    patches = patchify(pixels, (2, 3))
    for b in range(2):
        for row in range(2):
            for column in range(2):
                part = pixels[b, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
                expected = [part[c, y, x] for y in range(2) for x in range(3) for c in range(3)]
                assert patches[b, 2 * row + column].tolist() == torch.stack(expected).tolist()
    with pytest.raises(ValueError, match="do not divide"):
        patchify(pixels, (3, 3))


def test_positions_are_those_of_the_published_code() -> None:
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    theirs = build_2d_sinusoidal_position_embedding(3, 5, 16)
    # The published code has the columns first.
    expected = torch.cat([theirs[:, 8:], theirs[:, :8]], dim=1)
    torch.testing.assert_close(sin_cos((3, 5), 16), expected)
    solid = sin_cos((2, 3, 4), 20)
    assert solid.shape == (24, 20) and len(solid.unique(dim=0)) == 24
    assert not solid[:, 18:].any()


def restore(mask: masking.Mask) -> Tensor:
    """Where each patch stands among the seen, then the hidden ones."""
    return torch.cat([mask.seen, mask.hidden], dim=1).argsort(dim=1)


# Masks ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.floats(0.05, 0.95), st.integers(1, 4))
def test_every_sample_shows_as_many_patches(count: int, ratio: float, size: int) -> None:
    draws = torch.arange(size) + 7
    mask = masking.uniform(masking.noise(draws, count), ratio)
    assert mask.seen.shape == (size, int(count * (1 - ratio)))
    both = torch.cat([mask.seen, mask.hidden], dim=1)
    assert torch.equal(both.gather(1, restore(mask)), torch.arange(count).expand(size, -1))


def test_nine_of_ten_patches_of_the_paper_leave_nineteen() -> None:
    assert masking.visible(196, 0.9) == 19


def test_a_mask_depends_on_its_own_draw_alone() -> None:
    alone = masking.noise(torch.tensor([5]), 16)
    among = masking.noise(torch.tensor([3, 5, 9]), 16)
    assert torch.equal(among[1], alone[0])
    assert not torch.equal(among[0], among[1])
    state = torch.get_rng_state()
    masking.noise(torch.tensor([1]), 16)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_patch_is_seen_equally_often() -> None:
    mask = masking.uniform(masking.noise(torch.arange(4000), 16), 0.75)
    shares = np.bincount(mask.seen.flatten().numpy(), minlength=16) / 4000
    assert np.abs(shares - 0.25).max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


# The encoder ----------------------------------------------------------------------------


def test_all_patches_give_what_the_network_gives() -> None:
    backbone = vit()
    objective = autoencoder(backbone)
    pixels = batch()["pixel_values"]
    patches = patchify(pixels, objective.encoder.patch)
    every = torch.arange(16).expand(3, -1)
    with torch.no_grad():
        tokens = objective.eval().encoder(patches, every)
        torch.testing.assert_close(tokens, backbone(pixel_values=pixels).tokens)
        # In any order: a patch knows its place.
        turned = objective.encoder(patches.flip(1), every.flip(1))
    torch.testing.assert_close(turned[:, 1:].flip(1), tokens[:, 1:], rtol=1e-4, atol=1e-5)


def test_what_is_hidden_changes_no_feature() -> None:
    objective, given = autoencoder().eval(), batch()
    patches, mask = objective.masked(given["pixel_values"], given["draws"])
    before = objective.encoder(take(patches, mask.seen), mask.seen)
    noise = torch.randn_like(patches)
    changed = patches.scatter(
        1, mask.hidden[..., None].expand(-1, -1, patches.shape[-1]), take(noise, mask.hidden)
    )
    pixels = unpatchify(changed, objective.encoder.patch, objective.encoder.grid)
    again, same = objective.masked(pixels, given["draws"])
    assert not torch.equal(pixels, given["pixel_values"])
    assert torch.equal(objective.encoder(take(again, same.seen), same.seen), before)


def test_the_network_is_an_ordinary_one_afterwards() -> None:
    backbone = vit()
    names = {name: tensor.shape for name, tensor in backbone.network.state_dict().items()}
    objective = autoencoder(backbone).train()
    objective(**batch())["loss"].backward()
    torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], 0.1).step()
    state = backbone.network.state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == names
    positions = state["embeddings.position_embeddings"][0]
    assert torch.equal(positions[1:], sin_cos((4, 4), 32)) and not positions[0].any()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_own_positions_stay_and_are_trained() -> None:
    backbone = vit()
    before = backbone.network.embeddings.position_embeddings.detach().clone()
    objective = autoencoder(backbone, positions="own").train()
    objective(**batch())["loss"].backward()
    positions = backbone.network.embeddings.position_embeddings
    assert torch.equal(positions, before) and positions.grad.abs().sum() > 0


def test_a_distilled_network_and_one_with_registers_are_entered() -> None:
    networks = [
        (DeiTModel(DeiTConfig(**SMALL, intermediate_size=64), add_pooling_layer=False), 2),
        (Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL)), 5),
    ]
    for network, prefix in networks:
        spec = InputSpec("pixel_values", "image", 3, (32, 32))
        opened = Opened(network.eval(), spec, prefix_tokens=prefix)
        objective = autoencoder(Backbone(opened, "x", "mean"))
        assert objective.encoder.prefix == prefix
        assert objective(**batch())["loss"].isfinite()


def test_others_are_refused_and_left_as_they_are() -> None:
    swin = SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2],
                   window_size=4)
    )  # fmt: skip
    spec = InputSpec("pixel_values", "image", 3, (32, 32))
    for backbone in (
        Backbone(Opened(swin.eval(), spec), "swin", "mean"),
        open_backbone("builtin:efficientnet-lite0#random"),
        open_backbone(SPEC, size=64),
    ):
        before = {n: t.clone() for n, t in backbone.network.state_dict().items()}
        with pytest.raises(BackboneError, match="some of its patches"):
            autoencoder(backbone)
        state = backbone.network.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def test_a_ratio_that_hides_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves 0"):
        autoencoder(mask_ratio=0.99)


# The decoder and the loss ---------------------------------------------------------------


def whole_block(block: Block, tokens: Tensor) -> Tensor:
    """Every token, head by head, with nothing left out or computed twice."""
    width = tokens.shape[-1]
    each = width // block.heads
    query, key, value = block.qkv(block.norm1(tokens)).split(width, dim=-1)
    heads = []
    for head in range(block.heads):
        part = slice(head * each, (head + 1) * each)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / each**0.5
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    tokens = tokens + block.out(torch.cat(heads, dim=-1))
    return tokens + block.down(nn.functional.gelu(block.up(block.norm2(tokens))))


def whole_decoder(decoder: Decoder, tokens: Tensor, mask: masking.Mask) -> Tensor:
    """Patches in the order of the picture, all of them predicted (He et al., published code)."""
    embedded = decoder.embed(tokens)
    prefix, seen = embedded[:, : decoder.prefix], embedded[:, decoder.prefix :]
    blank = decoder.mask_token.expand(*mask.hidden.shape, -1)
    order = restore(mask)[..., None].expand(-1, -1, seen.shape[-1])
    states = torch.cat([seen, blank], dim=1).gather(1, order) + decoder.positions
    states = torch.cat([prefix, states], dim=1)
    for block in decoder.blocks:
        states = whole_block(block, states)
    return decoder.predict(decoder.norm(states))[:, decoder.prefix :]


def test_loss_and_gradients_are_those_of_the_plain_method() -> None:
    objective, given = autoencoder().train(), batch()
    patches, mask = objective.masked(given["pixel_values"], given["draws"])
    tokens = objective.encoder(take(patches, mask.seen), mask.seen)
    predicted = whole_decoder(objective.decoder, tokens, mask)
    weight = torch.zeros(3, 16).scatter(1, mask.hidden, 1.0)
    expected = ((predicted - patches).square().mean(-1) * weight).sum(1) / weight.sum(1)
    expected.mean().backward()
    wanted = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    outputs = objective(**given)
    torch.testing.assert_close(outputs["losses"], expected)
    torch.testing.assert_close(outputs["loss"], expected.mean())
    outputs["loss"].backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_visible_pixels_have_no_weight_in_the_loss() -> None:
    objective, given = autoencoder().eval(), batch()
    pixels = given["pixel_values"].requires_grad_()
    patches, mask = objective.masked(pixels, given["draws"])
    predicted = objective.predicted(patches, mask).detach()
    # With what was predicted held still, the targets alone carry a gradient.
    (predicted - take(patches, mask.hidden)).square().mean().backward()
    slopes = patchify(pixels.grad, objective.encoder.patch)
    assert not take(slopes, mask.seen).any()
    assert take(slopes, mask.hidden).any()


@pytest.mark.parametrize("norm_pix", [False, True])
def test_predicting_the_target_costs_nothing(
    norm_pix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = autoencoder(norm_pix=norm_pix)

    def target(patches: Tensor, mask: masking.Mask) -> Tensor:
        hidden = take(patches, mask.hidden)
        if norm_pix:
            spread = (hidden.var(-1, keepdim=True) + 1e-6).sqrt()
            hidden = (hidden - hidden.mean(-1, keepdim=True)) / spread
        return hidden

    monkeypatch.setattr(objective, "predicted", target)
    assert objective(**batch())["loss"] < 1e-12


def test_normalised_targets_ignore_brightness_and_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, given = autoencoder(norm_pix=True), batch()
    fixed = torch.randn(3, 12, 192, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(objective, "predicted", lambda patches, mask: fixed)
    before = objective(**given)["losses"]
    after = objective(given["draws"], pixel_values=3 * given["pixel_values"] + 5)["losses"]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_volumes_have_patches_of_three_dimensions(cubes: Backbone) -> None:
    objective = autoencoder(cubes)
    given = {"images": torch.randn(2, 1, 12, 12, 12), "draws": torch.arange(2)}
    assert objective(**given)["losses"].shape == (2,)
    shown = pretraining.pictures(objective, objective.settings, given)
    assert shown is not None and shown.shape == (2, 3, 1, 12, 12, 12)


def test_slices_of_a_volume_each_have_a_mask() -> None:
    objective = autoencoder()
    one = torch.randn(1, 1, 3, 32, 32).expand(2, 4, -1, -1, -1)
    patches, mask = objective.masked(one, torch.arange(2))
    assert patches.shape[0] == 8 and len(mask.seen.unique(dim=0)) > 4
    assert objective(torch.arange(2), pixel_values=one)["losses"].shape == (2,)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_pictures_show_input_mask_and_what_was_filled_in(norm_pix: bool) -> None:
    objective, given = autoencoder(norm_pix=norm_pix).eval(), batch()
    shown = pretraining.pictures(objective, objective.settings, given)
    assert shown is not None
    whole, seen, filled = (torch.from_numpy(shown[:, k]) for k in range(3))
    assert torch.equal(whole, given["pixel_values"])
    patches, mask = objective.masked(whole, given["draws"])
    for picture in (seen, filled):
        assert torch.equal(
            take(patchify(picture, objective.encoder.patch), mask.seen), take(patches, mask.seen)
        )
    assert not take(patchify(seen, objective.encoder.patch), mask.hidden).any()
    assert take(patchify(filled, objective.encoder.patch), mask.hidden).any()


def test_it_learns_what_can_be_guessed_from_the_rest() -> None:
    torch.manual_seed(0)
    objective = autoencoder(mask_ratio=0.5).train()
    shades = torch.linspace(-1, 1, 8)[:, None, None, None].expand(-1, 3, 32, 32)
    adam = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(40):
        adam.zero_grad()
        loss = objective(torch.arange(8) + 8 * step, pixel_values=shades)["loss"]
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_mixed_precision_trains() -> None:
    objective = autoencoder().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(**batch())["loss"]
    loss.backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


def test_the_encoder_alone_is_a_module_of_the_network() -> None:
    backbone = vit()
    encoder = PatchEncoder(backbone)
    assert {id(p) for p in encoder.parameters()} == {id(p) for p in backbone.parameters()}
