"""RandAugment, warps and stains against Pillow and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from galenic.core.errors import ConfigError, DataError
from galenic.data import augment, randaugment, stain, warp
from galenic.data.augment import AugmentConfig

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
PICTURE = BYTES.transpose(2, 0, 1).astype(np.float32) / 255
PILLOW: dict[str, tuple[float, Callable[[Image.Image], Image.Image]]] = {
    "autocontrast": (0, ImageOps.autocontrast),
    "invert": (0, ImageOps.invert),
    "posterize": (3, lambda picture: ImageOps.posterize(picture, 3)),
    "solarize": (0.5, lambda picture: ImageOps.solarize(picture, 128)),
    "color": (1.6, lambda picture: ImageEnhance.Color(picture).enhance(1.6)),
    "contrast": (0.4, lambda picture: ImageEnhance.Contrast(picture).enhance(0.4)),
    "brightness": (1.5, lambda picture: ImageEnhance.Brightness(picture).enhance(1.5)),
    "sharpness": (1.8, lambda picture: ImageEnhance.Sharpness(picture).enhance(1.8)),
}


@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_is_pillows_on_bytes(name: str) -> None:
    severity, reference = PILLOW[name]
    expected = np.asarray(reference(Image.fromarray(BYTES)), np.float32).transpose(2, 0, 1) / 255
    found = randaugment.apply(PICTURE, [(name, severity)])
    # Pillow rounds its grey to whole numbers before it blends.
    assert np.abs(found - expected).max() < 2.5 / 255


def test_equalized_intensities_are_spread_evenly_and_keep_their_order() -> None:
    skewed = RNG.random((1, 64, 64)).astype(np.float32) ** 2
    found = randaugment.equalize(skewed, 0.0)
    counts, _ = np.histogram(found, np.linspace(0, 1, 9))
    assert counts.min() > 0.7 * found.size / 8
    order = np.argsort(skewed.ravel())
    assert (np.diff(found.ravel()[order]) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([1, 2, 3]),
    magnitude=st.floats(0, 10),
    half=st.booleans(),
)
def test_any_depth_and_any_channels_stay_pictures(
    seed: int, channels: int, magnitude: float, half: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((channels, 9, 7)).astype(np.float16 if half else np.float32)
    before = values.copy()
    config = AugmentConfig(randaugment={"magnitude": magnitude, "count": 4})
    drawn = augment.draw(config, rng, values.shape)
    found = augment.apply(values, drawn)
    np.testing.assert_array_equal(found, augment.apply(values, drawn))
    np.testing.assert_array_equal(values, before)
    assert (found.shape, found.dtype) == (values.shape, np.float32)
    inner = randaugment.apply(values, drawn["randaugment"])
    assert inner.min() >= 0
    assert inner.max() <= 1


def test_every_operation_is_drawn_and_moves_a_picture() -> None:
    config = randaugment.RandAugmentConfig()
    rng = np.random.default_rng(1)
    drawn = [pair for _ in range(400) for pair in randaugment.draw(config, rng)]
    assert {name for name, _ in drawn} == set(randaugment.OPERATIONS) == set(randaugment.SEVERITY)
    # Two are drawn a picture, and each is applied every other time.
    assert 300 < len(drawn) < 500
    dim = PICTURE * 0.4 + 0.3
    for pair in {name: (name, severity) for name, severity in drawn}.values():
        assert not np.allclose(randaugment.apply(dim, [pair]), dim, atol=1e-3), pair


def test_magnitude_zero_leaves_what_grows_with_it_alone() -> None:
    for name in ("rotate", "color", "contrast", "brightness", "sharpness", "shear_x",
                 "translate_y", "solarize_add"):  # fmt: skip
        severity = randaugment.SEVERITY[name](0.0, -1.0)
        assert np.allclose(randaugment.apply(PICTURE, [(name, severity)]), PICTURE, atol=1e-5)


def test_quarter_turns_and_whole_shifts_are_exact() -> None:
    square = RNG.random((2, 8, 8)).astype(np.float32)
    turned = warp.apply(square, {"degrees": 90.0, "size": 1.0, "shear": [0.0, 0.0]})
    np.testing.assert_array_equal(turned, np.rot90(square, axes=(1, 2)))
    moved = warp.warp(square, np.eye(2), (2, -1))
    np.testing.assert_array_equal(moved[:, 2:, :-1], square[:, :-2, 1:])
    np.testing.assert_array_equal(moved[:, :2, :-1], square[:, 1::-1, 1:])


def test_a_bright_picture_gets_no_dark_corners() -> None:
    bright = np.full((1, 20, 20), 0.8, np.float32)
    for degrees in (13.0, 45.0, 120.0):
        turned = warp.apply(bright, {"degrees": degrees, "size": 0.7, "shear": [0.2, -0.1]})
        np.testing.assert_allclose(turned, bright, atol=1e-6)


def test_a_warp_zooms_about_the_centre() -> None:
    rows = np.repeat(np.arange(9, dtype=np.float32)[:, None], 9, axis=1)[None]
    larger = warp.apply(rows, {"degrees": 0.0, "size": 2.0, "shear": [0.0, 0.0]})
    np.testing.assert_allclose(larger[0, :, 4], 4 + (np.arange(9) - 4) / 2, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_stains_left_as_they_are_give_the_picture_back(seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0.01, 1, (3, 4, 5)).astype(np.float32)
    same = stain.apply(values, {"gain": [1.0] * 3, "offset": [0.0] * 3})
    np.testing.assert_allclose(same, values, atol=1e-5)


def test_more_of_a_stain_is_its_colour_squared() -> None:
    amount = 0.4
    density = amount * stain.STAINS[1]
    eosin = np.broadcast_to(10.0 ** -density[:, None, None], (3, 2, 2)).astype(np.float32)
    twice = stain.apply(eosin, {"gain": [1.0, 2.0, 1.0], "offset": [0.0] * 3})
    np.testing.assert_allclose(twice, eosin**2, atol=1e-5)


def test_what_is_no_picture_or_has_no_stains_is_said() -> None:
    with pytest.raises(ConfigError, match="no picture"):
        augment.draw(AugmentConfig(warp={"rotate": 5}), RNG, (12, 500))
    with pytest.raises(DataError, match="no stains"):
        stain.apply(PICTURE[:1], {"gain": [1.0] * 3, "offset": [0.0] * 3})


def test_older_settings_draw_what_they_drew() -> None:
    plain, more = AugmentConfig(flip=True), AugmentConfig(flip=True, warp={"rotate": 10}, stain={})
    first = augment.draw(plain, np.random.default_rng(3), PICTURE.shape)
    second = augment.draw(more, np.random.default_rng(3), PICTURE.shape)
    assert {key: second[key] for key in first} == first
