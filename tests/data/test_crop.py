"""Random resized crops: drawn as shares, cut from the picture as stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.inputs import InputSpec
from galenic.data import crop, transforms
from galenic.data.augment import AugmentConfig
from galenic.data.values import Image, Signal, Volume

STILL = {"shift": 0.0, "intensity": 0.0}


@given(st.integers(0, 500), st.floats(0.05, 1), st.floats(0.05, 1))
def test_a_crop_keeps_its_share_inside_the_picture(seed: int, one: float, other: float) -> None:
    least, largest = sorted((one, other))
    top, left, height, width = crop.draw((least, largest), np.random.default_rng(seed))
    assert 0 <= top <= 1 - height + 1e-12 and 0 <= left <= 1 - width + 1e-12
    if height * width < 1:
        assert least - 1e-9 <= height * width <= largest + 1e-9
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 200))
def test_what_is_cut_is_never_empty(high: int, wide: int, seed: int) -> None:
    picture = np.zeros((2, high, wide))
    box = crop.draw((0.05, 1.0), np.random.default_rng(seed))
    part = crop.cut(picture, box)
    assert part.shape[1] == max(1, round(box[2] * high))
    assert part.shape[2] == max(1, round(box[3] * wide))


def test_the_cut_is_made_in_the_picture_as_stored() -> None:
    picture = np.arange(1 * 8 * 8.0).reshape(1, 8, 8)
    part = crop.cut(picture, (0.25, 0.5, 0.5, 0.25))
    assert np.array_equal(part, picture[:, 2:6, 4:6])


def test_a_crop_shows_detail_that_resizing_first_would_lose() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), 32)[None, None].repeat(64, axis=1)
    spec = InputSpec("pixel_values", "image", 1, (32, 32))
    way = transforms.build(spec, "image", augment=AugmentConfig(crop=(0.25, 0.25), **STILL))
    drawn = way.draw(np.random.default_rng(0), Image(stripes))
    assert drawn is not None
    # Half of each side: a stripe is as wide as a pixel of the network.
    cropped = way.apply(Image(stripes), drawn | {"crop": (0.25, 0.25, 0.5, 0.5)})
    assert cropped.shape == (1, 32, 32) and cropped.std() > 0.4
    assert way.apply(Image(stripes)).std() < 0.1
    assert cropped.min() >= 0 and cropped.max() <= 1


def test_cubics_follow_a_parabola_where_lines_do_not() -> None:
    places = (np.arange(16, dtype=np.float32) + 0.5) / 16
    picture = np.broadcast_to(places**2, (1, 16, 16))
    finer = ((np.arange(64) + 0.5) / 64) ** 2
    inner = slice(12, -12)
    errors = [
        np.abs(transforms.resize(picture, (64, 64), cubic=cubic)[0, 32] - finer)[inner].max()
        for cubic in (False, True)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_slices_and_volumes_are_cropped_alike() -> None:
    voxels = np.random.default_rng(0).normal(size=(1, 6, 20, 20)).astype(np.float32)
    box = (0.1, 0.2, 0.5, 0.5)
    for form, size in (("image", (16, 16)), ("volume", (6, 16, 16))):
        spec = InputSpec("x", form, 1, size)
        way = transforms.build(spec, "volume", augment=AugmentConfig(crop=(0.5, 1), **STILL))
        drawn = way.draw(np.random.default_rng(0), Volume(voxels))
        assert drawn is not None
        shape = way.apply(Volume(voxels), drawn | {"crop": box}).shape
        assert shape == way.apply(Volume(voxels)).shape


def test_shares_out_of_order_and_tracings_are_refused() -> None:
    with pytest.raises(ConfigError, match="least"):
        parse(AugmentConfig, {"crop": [0.9, 0.5]})
    spec = InputSpec("x", "image", 1, (16, 16))
    way = transforms.build(spec, "audio", augment=AugmentConfig(crop=(0.5, 1.0)))
    sound = Signal(np.zeros((1, 16000), np.float32), 16000.0, ("mono",))
    with pytest.raises(DataError, match="audio"):
        way.apply(sound, way.draw(np.random.default_rng(0), sound))
