"""Masked pictures and masked words: the words are told of the picture, and of nothing hidden."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from galenic.core.errors import BackboneError, ConfigError
from galenic.models.backbone import Backbone, open_backbone
from galenic.models.tokenizers import open_tokenizer
from galenic.objectives import pretraining
from galenic.objectives.pretraining._autoencoder import MaskedAutoencoder
from galenic.objectives.pretraining._patches import patchify, shrink, take, unpatchify
from galenic.objectives.pretraining.urfound.objective import KnowledgeMasked

SPEC = "builtin:vit?width=32&depth=2&heads=2&image=32&patch=8"
TEXT = {"layers": 1, "width": 32, "heads": 2, "max_tokens": 24}
CAPTIONS = ["a spiculated mass", "an oval, well-circumscribed hypoechoic lesion", "no mass"]


def vit() -> Backbone:
    torch.manual_seed(0)
    return open_backbone(SPEC)


def settings(**changed: object) -> dict[str, object]:
    decoder = {"dim": 24, "depth": 1, "heads": 2}
    return {"method": "urfound", "text": TEXT, "decoder": decoder, **changed}


def joint(backbone: Backbone | None = None, **changed: object) -> KnowledgeMasked:
    config = pretraining.parse(settings(**changed))
    found = pretraining.build(backbone or vit(), config, 0)
    assert isinstance(found, KnowledgeMasked)
    return found.eval()


def cut(captions: list[str]) -> dict[str, Tensor]:
    tokenizer = open_tokenizer("builtin:minilm", 24)
    found = tokenizer(captions, padding=True, return_tensors="pt")
    words = [
        [-1 if word is None else word for word in found.word_ids(row)]
        for row in range(len(captions))
    ]
    keys = ("input_ids", "attention_mask")
    return {**{key: found[key] for key in keys}, "words": torch.tensor(words)}


def batch(side: int = 64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, side, side, generator=draw)
    return {"pixel_values": pixels, "draws": torch.arange(3) + 5, **cut(CAPTIONS)}


# The picture ----------------------------------------------------------------------------


def test_a_patch_is_shrunk_as_the_same_part_of_the_picture() -> None:
    pixels = torch.randn(2, 3, 64, 96)
    small = shrink(patchify(pixels, (16, 16)), (16, 16), 2)
    for row in range(4):
        for column in range(6):
            part = pixels[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            part = functional.interpolate(part, (8, 8), mode="bicubic")
            torch.testing.assert_close(small[:, 6 * row + column], patchify(part, (8, 8))[:, 0])
    whole = functional.interpolate(pixels, (32, 48), mode="bicubic")
    alone = unpatchify(small, (8, 8), (4, 6)).unflatten(3, (6, 8)).unflatten(2, (4, 8))
    whole = whole.unflatten(3, (6, 8)).unflatten(2, (4, 8))
    # As the whole picture would be, but at the edges of a patch.
    inner = (..., slice(1, 7), slice(None), slice(1, 7))
    torch.testing.assert_close(alone[inner], whole[inner])


def test_hidden_pixels_change_no_token_and_no_word() -> None:
    objective, given = joint(), batch()
    patches, mask = objective.masked(given["pixel_values"], given["draws"])
    places = mask.hidden[..., None].expand(-1, -1, patches.shape[-1])
    changed = patches.scatter(1, places, take(torch.randn_like(patches), mask.hidden))
    pixels = unpatchify(changed, objective.patch, objective.encoder.grid)
    assert torch.equal(objective.tokens(changed, mask), objective.tokens(patches, mask))
    before, after = objective(**given), objective(**{**given, "pixel_values": pixels})
    assert torch.equal(after["text_loss"], before["text_loss"])
    assert not torch.equal(after["image_loss"], before["image_loss"])


def test_visible_pixels_have_no_weight_as_targets() -> None:
    objective, given = joint(norm_pix=False), batch()
    pixels = given["pixel_values"].requires_grad_()
    patches, mask = objective.masked(pixels, given["draws"])
    predicted = objective.predicted(patches, mask).detach()
    assert predicted.shape == (3, 12, 16 * 16 * 3)
    objective.errors(predicted, patches, mask, 3).sum().backward()
    slopes = patchify(pixels.grad, objective.patch)
    assert not take(slopes, mask.seen).any() and take(slopes, mask.hidden).any()


def test_pictures_alone_at_the_scale_seen_are_a_masked_autoencoder() -> None:
    given = {key: batch(32)[key] for key in ("pixel_values", "draws")}
    values = settings(text=None, target_scale=1)
    plain = {key: values[key] for key in ("decoder",)} | {"mask_ratio": 0.75, "norm_pix": True}
    found = []
    for config in (values, {"method": "mae", **plain}):
        objective = pretraining.build(vit(), pretraining.parse(config), 0).train()
        outputs = objective(**given)
        outputs["loss"].backward()
        slopes = [p.grad for p in objective.parameters() if p.requires_grad]
        found.append([outputs["losses"], *slopes])
    assert type(objective) is MaskedAutoencoder and len(found[0]) == len(found[1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_word_branch_changes_no_loss_of_the_picture() -> None:
    given = batch()
    alone = pretraining.build(vit(), pretraining.parse(settings(text=None)), 0).eval()
    image = alone(given["draws"], pixel_values=given["pixel_values"])["losses"]
    outputs = joint()(**given)
    assert torch.equal(outputs["image_loss"], image)
    torch.testing.assert_close(outputs["losses"], image + outputs["text_loss"])


# The words ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_text_loss_is_the_mean_over_the_masked_words_of_a_caption(loss_on: str) -> None:
    objective, given = joint(text={**TEXT, "loss_on": loss_on}), batch()
    words, ids = objective.words, given["input_ids"]
    masked = words.masked(given["words"], given["draws"])
    assert masked.any() and not masked.all()
    patches, mask = objective.masked(given["pixel_values"], given["draws"])
    image = objective.tokens(patches, mask)[:, objective.encoder.prefix :].mean(dim=1)
    losses = []
    for row in range(3):
        # Each caption alone, without padding.
        length = int(given["attention_mask"][row].sum())
        seen = [103 if masked[row, k] else int(ids[row, k]) for k in range(length)]
        bert = words.model.bert
        embedded = bert.embeddings(torch.tensor([seen])) + words.project(image[row])
        logits = words.model.cls(bert.encoder(embedded).last_hidden_state)[0].log_softmax(dim=-1)
        judged = [
            k for k in range(length)
            if (masked[row, k] if loss_on == "masked" else 0 < k < length - 1)
        ]  # fmt: skip
        losses.append(sum(-logits[k, ids[row, k]] for k in judged) / len(judged))
    torch.testing.assert_close(objective(**given)["text_loss"], torch.stack(losses))


def test_ids_are_those_of_the_tokenizer() -> None:
    tokenizer = open_tokenizer("builtin:minilm", 24)
    model = joint().words.model
    assert joint().words.mask_id == tokenizer.mask_token_id == 103
    assert model.config.vocab_size == len(tokenizer) == 30522
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_words_are_masked_whole_and_half_of_them() -> None:
    words = joint().words
    numbers = torch.tensor([-1, 0, 0, 1, 2, 2, 2, 3, -1, -1]).expand(4000, -1)
    masked = words.masked(numbers, torch.arange(4000))
    assert not masked[:, [0, 8, 9]].any()
    assert torch.equal(masked[:, 1], masked[:, 2])
    assert torch.equal(masked[:, 4], masked[:, 5]) and torch.equal(masked[:, 5], masked[:, 6])
    shares = masked[:, [1, 3, 4, 7]].float().mean(dim=0)
    assert (shares - 0.5).abs().max() < 5 * (0.25 / 4000) ** 0.5
    pairs = torch.corrcoef(masked[:, [1, 3, 4, 7]].float().T) - torch.eye(4)
    assert pairs.abs().max() < 0.08


def test_words_and_patches_are_hidden_independently() -> None:
    objective = joint()
    draws = torch.arange(4000)
    numbers = torch.arange(16).expand(4000, -1)
    masked = objective.words.masked(numbers, draws).float()
    mask = objective.masked(torch.zeros(4000, 1, 3, 1, 1).expand(-1, 1, 3, 64, 64), draws)[1]
    seen = torch.zeros(4000, 16).scatter(1, mask.seen, 1.0)
    both = torch.corrcoef(torch.cat([masked, seen], dim=1).T)[:16, 16:]
    assert both.abs().max() < 0.08


def test_padding_and_neighbours_change_nothing() -> None:
    objective, given = joint(), batch()
    padded = dict(given)
    for key, value in (("input_ids", 7), ("attention_mask", 0), ("words", -1)):
        padded[key] = functional.pad(given[key], (0, 3), value=value)
    together, alone = objective(**given), objective(**{k: v[:1] for k, v in given.items()})
    torch.testing.assert_close(objective(**padded)["losses"], together["losses"])
    torch.testing.assert_close(alone["losses"], together["losses"][:1])


def test_captions_without_a_masked_word_cost_nothing() -> None:
    objective, given = joint().train(), {**batch(), **cut(["", "", ""])}
    outputs = objective(**given)
    assert not outputs["text_loss"].any()
    outputs["loss"].backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# The words and the picture --------------------------------------------------------------


def test_the_words_depend_on_the_picture_through_the_projection_alone() -> None:
    objective, given = joint(), batch()
    other = {**given, "pixel_values": given["pixel_values"].flip(0)}
    assert not torch.equal(objective(**other)["text_loss"], objective(**given)["text_loss"])
    objective(**given)["text_loss"].sum().backward()
    stem = objective.encoder.network.embeddings.patch_embeddings.projection
    assert stem.weight.grad.abs().sum() > 0
    torch.nn.init.zeros_(objective.words.project.weight)
    assert torch.equal(objective(**other)["text_loss"], objective(**given)["text_loss"])


def trained(shuffled: bool) -> tuple[Tensor, Tensor]:
    """Text loss of the right and of the wrong picture, after a little training."""
    shades = torch.linspace(-1.5, 1.5, 4)[:, None, None, None].expand(-1, 3, 64, 64)
    given = cut(["dark", "grey", "bright", "white"])
    objective = joint(text={**TEXT, "mask": 1.0}).train()
    adam = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], 3e-3)
    drawn = torch.Generator().manual_seed(0)
    for step in range(100):
        order = torch.randperm(4, generator=drawn) if shuffled else torch.arange(4)
        adam.zero_grad()
        words = {key: value[order] for key, value in given.items()}
        objective(torch.arange(4) + 4 * step, pixel_values=shades, **words)["loss"].backward()
        adam.step()
    ask = partial(objective.eval(), torch.arange(4), **given)
    with torch.no_grad():
        right, wrong = (ask(pixel_values=p)["text_loss"] for p in (shades, shades.flip(0)))
    return right.mean(), wrong.mean()


def test_trained_words_are_missed_beside_the_wrong_picture() -> None:
    right, wrong = trained(shuffled=False)
    assert right < 0.3 and wrong > 2
    # With captions of other pictures, no picture tells more than the frequency of the words.
    right, _ = trained(shuffled=True)
    assert right > 1.3


def test_slices_share_one_caption() -> None:
    objective, given = joint(), batch()
    pixels = given["pixel_values"].unsqueeze(1).expand(-1, 4, -1, -1, -1)
    outputs = objective(**{**given, "pixel_values": pixels})
    assert outputs["text_loss"].shape == outputs["image_loss"].shape == (3,)


# What is refused ------------------------------------------------------------------------


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not of \(64, 64\)"):
        joint()(**batch(32))
    with pytest.raises(ValueError, match="do not divide"):
        joint()(**batch(60))


def test_what_has_no_place_for_it_is_refused(cubes: Backbone) -> None:
    with pytest.raises(ConfigError, match="heads"):
        pretraining.parse(settings(text={"width": 30, "heads": 4}))
    with pytest.raises(BackboneError, match="masks whole words"):
        joint(text={**TEXT, "tokenizer": SPEC})
    with pytest.raises(BackboneError, match="reads volumes"):
        joint(cubes)
