"""Overlaps and distances of masks against MONAI, closed forms and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galenic.evaluation.masks import METRICS, compare, paired, summarise, surface_distances

DICE, IOU, HD95, ASSD = range(4)


def blobs(seed: int, shape: tuple[int, ...] = (24, 30)) -> np.ndarray:
    """Codes 0..2 in patches."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, [side // 6 for side in shape])
    for axis in range(len(shape)):
        coarse = coarse.repeat(6, axis=axis)
    return coarse


@pytest.mark.parametrize("shape", [(24, 30), (12, 18, 12)])
@pytest.mark.parametrize("stretch", [1.0, 2.5])
def test_as_monai(shape: tuple[int, ...], stretch: float) -> None:
    metrics = pytest.importorskip("monai.metrics")
    ours, true = blobs(1, shape), blobs(2, shape)
    spacing = [stretch, *[1.0] * (len(shape) - 1)]
    found = compare(ours, true, 2, spacing)
    hot = [
        torch.from_numpy(np.stack([codes == k for k in range(3)])[None]) for codes in (ours, true)
    ]
    dice = metrics.compute_dice(*hot, include_background=False)[0]
    iou = metrics.compute_iou(*hot, include_background=False)[0]
    far = metrics.compute_hausdorff_distance(*hot, percentile=95, spacing=spacing)[0]
    np.testing.assert_allclose(found[:, DICE], dice, rtol=1e-5)
    np.testing.assert_allclose(found[:, IOU], iou, rtol=1e-5)
    np.testing.assert_allclose(found[:, HD95], far, rtol=1e-5)


def test_distances_against_a_loop() -> None:
    ours, true = blobs(3) == 1, blobs(4) == 1
    there, back = surface_distances(ours, true, (2.0, 1.0))

    def surface(mask: np.ndarray) -> list[tuple[int, int]]:
        found = []
        for i, j in np.argwhere(mask):
            around = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            inside = [0 <= a < mask.shape[0] and 0 <= b < mask.shape[1] and mask[a, b]
                      for a, b in around]  # fmt: skip
            if not all(inside):
                found.append((i, j))
        return found

    def nearest(here: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[float]:
        return [min(np.hypot(2 * (a - c), b - d) for c, d in others) for a, b in here]

    one, other = surface(ours), surface(true)
    np.testing.assert_allclose(sorted(there), sorted(nearest(one, other)))
    np.testing.assert_allclose(sorted(back), sorted(nearest(other, one)))


def test_misses_count_and_absence_does_not() -> None:
    empty, some = np.zeros((30, 40), int), np.zeros((30, 40), int)
    some[3:6, 3:6] = 1
    assert np.isnan(compare(empty, empty, 1, (1, 1))).all()
    for pair in ((empty, some), (some, empty)):
        assert compare(*pair, 1, (1, 1))[0].tolist() == [0, 0, 50, 50]
    assert compare(some, some, 1, (1, 1))[0].tolist() == [1, 1, 0, 0]
    moved = np.roll(some, 2, axis=1)
    assert compare(some, moved, 1, (1, 0.5))[0, HD95] == 1.0


def test_summary_weighs_structures_alike_and_draws_patients() -> None:
    values = np.full((4, 2, 4), np.nan)
    values[:, 0] = np.array([1.0, 0.0, 1.0, 1.0])[:, None]
    values[0, 1] = 0.5
    groups = np.array([0, 0, 1, 2])
    mean, each = summarise(values, groups, resamples=4000, level=0.95, seed=0)
    assert [each[k]["dice"].value for k in (0, 1)] == [0.75, 0.5]
    assert mean["dice"].value == 0.625 and mean["dice"].n == 3
    # Without the first patient nobody has the second structure.
    assert each[1]["dice"].undefined == pytest.approx((2 / 3) ** 3, abs=0.03)
    assert each[0]["dice"].low <= 0.5 and each[0]["dice"].high == 1
    assert set(mean) == set(METRICS)


def test_paired_difference_is_of_the_same_patients() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.uniform(0, 0.8, (60, 1))
    gap = paired(theirs + 0.1, theirs, np.arange(60), resamples=500, level=0.95, seed=0)
    assert gap.value == pytest.approx(0.1)
    assert gap.low == pytest.approx(0.1) and gap.high == pytest.approx(0.1)
