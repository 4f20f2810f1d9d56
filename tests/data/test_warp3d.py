"""Volumes in one resampling, against scipy, numpy's own turns and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from galenic.core.errors import ConfigError
from galenic.core.inputs import InputSpec
from galenic.data import augment, transforms, warp3d
from galenic.data.augment import AugmentConfig
from galenic.data.masks import moved
from galenic.data.values import Volume
from galenic.data.warp import WarpConfig, turn

RNG = np.random.default_rng(0)
CUBE = RNG.random((2, 9, 9, 9)).astype(np.float32)
NONE = {"degrees": [0.0] * 3, "size": 1.0, "shear": [0.0] * 6, "voxel": [1.0] * 3}
STILL = {"shift": 0.0, "intensity": 0.0}


def smooth(sides: tuple[int, int, int]) -> np.ndarray:
    """A volume [1, D, H, W] of slow waves."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, side) for side in sides), indexing="ij")
    wave = 0.5 + 0.2 * np.sin(2 * d + h) + 0.2 * np.cos(1.5 * w - d)
    return wave[None].astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sides=st.tuples(*[st.integers(1, 9)] * 3),
    channels=st.integers(1, 3),
    zoom=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_every_voxel_is_what_scipy_looks_up(
    seed: int, sides: tuple[int, int, int], channels: int, zoom: float
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((channels, *sides)).astype(np.float32)
    drawn = warp3d.draw(WarpConfig(rotate=180, zoom=zoom, shear=0.3), rng, (3.0, 1.0, 0.7))
    matrix, shift = warp3d.matrix(drawn), rng.uniform(-4, 4, 3)
    centre = (np.array(sides)[:, None, None, None] - 1) / 2
    goal = np.indices(sides) - centre - shift[:, None, None, None]
    places = np.einsum("ab,bdhw->adhw", np.linalg.inv(matrix), goal) + centre
    expected = [map_coordinates(part, places, order=1, mode="reflect") for part in values]
    np.testing.assert_allclose(warp3d.warp(values, matrix, shift), expected, atol=1e-4)


def test_nothing_and_quarter_turns_are_exact() -> None:
    np.testing.assert_array_equal(warp3d.warp(CUBE, warp3d.matrix(NONE)), CUBE)
    for axis, plane in enumerate([(2, 3), (1, 3), (1, 2)]):
        for quarters in (1, 2, 3):
            degrees = [0.0] * 3
            degrees[axis] = 90.0 * quarters
            found = warp3d.warp(CUBE, warp3d.matrix(NONE | {"degrees": degrees}))
            np.testing.assert_array_equal(found, np.rot90(CUBE, quarters, axes=plane))


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_flips_turns_and_shifts_are_folded_in_as_they_are_without_a_warp(
    turns: int, flip: bool
) -> None:
    drawn = augment.draw(AugmentConfig(**STILL), RNG, CUBE.shape)
    drawn |= {"flip": flip, "turns": turns, "shift": [1, -2, 3]}
    plain, fused = augment.apply(CUBE, drawn), augment.apply(CUBE, drawn | {"warp": NONE})
    inner = (slice(None), slice(1, None), slice(None, -2), slice(3, None))
    np.testing.assert_array_equal(fused[inner], plain[inner])
    # The edges differ: a mirror image of what is there, or its last slice again.
    np.testing.assert_array_equal(fused[:, 0], fused[:, 1])
    np.testing.assert_array_equal(fused[..., 2], fused[..., 3])
    np.testing.assert_array_equal(fused[..., 0], fused[..., 5])


def test_a_warp_and_its_inverse_give_the_volume_back() -> None:
    volume = smooth((40, 36, 44))
    matrix = warp3d.matrix(
        NONE | {"degrees": [20.0, -10.0, 15.0], "size": 1.1, "shear": [0.1, 0, -0.1, 0, 0.05, 0]}
    )
    back = warp3d.warp(warp3d.warp(volume, matrix), np.linalg.inv(matrix))
    inner = (slice(None), *[slice(12, -12)] * 3)
    np.testing.assert_allclose(back[inner], volume[inner], atol=2e-3)


def test_long_voxels_keep_the_body_whole() -> None:
    # A ball in mm, in voxels three times as deep as wide: turned about a row, it stays a ball.
    voxel, sides = [3.0, 1.0, 1.0], (21, 63, 63)
    grid = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(sides, voxel, strict=True)]
    far = sum(axis**2 for axis in np.meshgrid(*grid, indexing="ij"))
    ball = np.exp(-far / (2 * 8**2))[None].astype(np.float32)
    turned = NONE | {"degrees": [0.0, 40.0, 0.0]}
    gaps = [
        np.abs(warp3d.warp(ball, warp3d.matrix(turned | {"voxel": side})) - ball).max()
        for side in (voxel, [1.0] * 3)
    ]
    assert gaps[0] < 0.06 < 0.2 < gaps[1]


def test_the_transform_tells_the_size_of_a_voxel_that_the_network_sees() -> None:
    volume = Volume(RNG.random((1, 6, 12, 12)).astype(np.float32), spacing_mm=(5.0, 1.0, 0.5))
    config = AugmentConfig(warp={"rotate": 10})
    for form, size, expected in (
        ("volume", (12, 12, 6), [2.5, 1.0, 1.0]),
        ("volume", None, [5.0, 1.0, 0.5]),
    ):
        way = transforms.build(InputSpec("x", form, 3, size), "volume", augment=config)
        drawn = way.draw(np.random.default_rng(0), volume)
        assert drawn is not None
        np.testing.assert_allclose(drawn["warp"]["voxel"], expected)
        before = volume.voxels.copy()
        found = way.apply(volume, drawn)
        assert found.shape == (3, *(size or (6, 12, 12)))
        np.testing.assert_array_equal(found, way.apply(volume, drawn))
        np.testing.assert_array_equal(volume.voxels, before)


def test_slices_of_a_volume_are_warped_as_pictures() -> None:
    spec = InputSpec("x", "image", 3, (16, 16))
    config = AugmentConfig(channel_drop=0.5, warp={"rotate": 30}, **STILL)
    way = transforms.build(spec, "volume", augment=config)
    volume = Volume(1 + RNG.random((1, 4, 16, 16)).astype(np.float32))
    drawn = way.draw(np.random.default_rng(5), volume)
    assert drawn is not None
    assert isinstance(drawn["warp"]["degrees"], float)
    # Channels are dropped, of every slice, and no slice is.
    slices = way.apply(volume, drawn | {"dropped": [1]})
    assert slices[:, 1].max() == 0 < slices[:, [0, 2]].max(axis=(1, 2, 3)).min()


def test_a_bright_volume_gets_no_dark_corners() -> None:
    bright = np.full((1, 6, 7, 8), 0.8, np.float32)
    drawn = warp3d.draw(WarpConfig(rotate=180, zoom=0.9, shear=0.5), RNG, None)
    np.testing.assert_allclose(warp3d.warp(bright, warp3d.matrix(drawn)), bright, atol=1e-6)


def test_a_volume_thicker_than_a_block_has_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = warp3d.matrix(warp3d.draw(WarpConfig(rotate=40), RNG, None))
    once = warp3d.warp(CUBE, matrix)
    monkeypatch.setattr(warp3d, "BLOCK", 2 * 81)
    np.testing.assert_array_equal(warp3d.warp(CUBE, matrix), once)


def test_intensities_change_as_drawn_and_the_volume_stays_as_it_was() -> None:
    config = AugmentConfig(gamma=0.5, intensity=0.2, noise=0.05, shift=0)
    before = CUBE.copy()
    drawn = augment.draw(config, np.random.default_rng(1), CUBE.shape)
    found = augment.apply(CUBE, drawn)
    np.testing.assert_array_equal(CUBE, before)
    np.testing.assert_array_equal(found, augment.apply(CUBE, drawn))
    rest = found - (CUBE ** drawn["gamma"] * drawn["gain"] + drawn["offset"])
    assert abs(rest.std() - 0.05) < 0.005
    assert abs(rest.mean()) < 0.005
    assert 0.6 < drawn["gamma"] < 1.65


def test_gamma_needs_intensities_and_changes_no_other_draw() -> None:
    with pytest.raises(ConfigError, match="no picture"):
        augment.draw(AugmentConfig(gamma=0.1), RNG, (12, 500))
    first, second = (
        augment.draw(AugmentConfig(gamma=gamma, turns=True), np.random.default_rng(3), (1, 8, 8))
        for gamma in (0.0, 0.1)
    )
    assert {key: second[key] for key in first} == first


def test_a_mask_moves_as_its_volume() -> None:
    codes = np.repeat(np.repeat(RNG.integers(0, 3, (4, 8, 8)), 4, 1), 4, 2).repeat(4, 0)
    config = AugmentConfig(
        flip=True, turns=True, shift=0.2, gamma=0.4, noise=0.1, warp={"rotate": 30, "zoom": 0.2}
    )
    for seed in range(4):
        drawn = augment.draw(config, np.random.default_rng(seed), (1, 16, 32, 32))
        found = moved(codes, drawn, 3)
        geometry = {key: drawn[key] for key in ("flip", "turns", "shift", "warp")}
        still = {"gain": 1.0, "offset": 0.0, "noise": (0.0, 0), "dropped": []}
        shares = [augment.apply((codes == code)[None] * 1.0, geometry | still) for code in range(3)]
        sure = np.max(shares, axis=0)[0] > 0.5
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(found[sure], np.argmax(shares, axis=0)[0][sure])


def test_a_turn_about_one_axis_is_the_turn_of_its_slices() -> None:
    matrix = warp3d.matrix(NONE | {"degrees": [25.0, 0.0, 0.0]})
    np.testing.assert_allclose(matrix[1:, 1:], turn(25.0))
    np.testing.assert_array_equal(matrix[0], [1, 0, 0])
