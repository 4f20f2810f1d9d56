"""Masks on their pictures: where they lie in space, and what moves them along."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from galenic.core.errors import DataError
from galenic.core.inputs import InputSpec
from galenic.data.augment import AugmentConfig
from galenic.data.check import check
from galenic.data.cohort import Cohort
from galenic.data.masks import Masks, survey
from galenic.pipeline.masked import Frames, MaskedRows
from galenic.tasks.segment import _refuse

SIDES = (20, 16, 12)
# Left, back and up, as scanners write it.
LPS = np.diag([-1.0, -1, 2, 1])


def shifted(affine: np.ndarray, *by: float) -> np.ndarray:
    return affine + np.pad(np.array(by)[:, None], ((0, 1), (3, 0)))


def tilted(affine: np.ndarray, degrees: float) -> np.ndarray:
    turn = np.eye(4)
    angle = np.radians(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


@pytest.mark.parametrize(
    ("affine", "flips", "here"),
    [
        (LPS, False, True),
        # The same place, stored along other axes.
        (shifted(np.diag([1.0, 1, 2, 1]), -19, -15, 0), True, True),
        # To the rounding of a header.
        (shifted(LPS, 0.1, 0, 0.2), False, True),
        (shifted(LPS * [1.005, 1.005, 1.005, 1], 0, 0, 0), False, True),
        (tilted(LPS, 0.1), False, True),
        # An affine that a tool dropped, a shift of one slice, another tilt.
        (np.diag([1.0, 1, 2, 1]), False, False),
        (shifted(LPS, 0, 0, 2), False, False),
        (tilted(LPS, 3), False, False),
    ],
)
def test_a_mask_that_lies_elsewhere_is_found(
    affine: np.ndarray, flips: bool, here: bool, tmp_path: Path
) -> None:
    nibabel = pytest.importorskip("nibabel")
    voxels = np.zeros(SIDES, np.int16)
    voxels[:4, 2:5] = 1
    nibabel.save(nibabel.Nifti1Image(100 * voxels, LPS), tmp_path / "picture.nii.gz")
    mask = nibabel.Nifti1Image(voxels[::-1, ::-1] if flips else voxels, affine)
    nibabel.save(mask, tmp_path / "mask.nii.gz")
    table = pd.DataFrame({"image": ["picture.nii.gz"], "mask": ["mask.nii.gz"]})
    cohort = Cohort.open(table, root=tmp_path, inputs=["image"], label="mask", kind="mask")
    seen = survey(cohort)
    assert seen.faults.place == (() if here else (0,))
    assert ("mask-place" in {found.code for found in check(cohort).findings}) != here
    if here:
        picture = cohort.read(0)["image"].voxels[0]
        np.testing.assert_array_equal(Masks(cohort, seen.values).codes(0), picture / 100)
    else:
        with pytest.raises(DataError, match="lie elsewhere"):
            _refuse(seen.faults, "cohort.csv")


def test_a_crop_cuts_the_mask_with_its_picture(tmp_path: Path) -> None:
    picture = np.zeros((64, 48), np.uint8)
    picture[10:40, 8:30] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(picture // 255).save(tmp_path / "mask.png")
    table = pd.DataFrame({"image": ["picture.png"], "mask": ["mask.png"]})
    cohort = Cohort.open(table, root=tmp_path, inputs=["image"], label="mask", kind="mask")
    seen = survey(cohort)
    network = SimpleNamespace(inputs=InputSpec("x", "image", 1, (64, 64)))
    config = AugmentConfig(shift=0.1, intensity=0, flip=True, turns=True, crop=(0.3, 0.7))
    frames = Frames(cohort, network, seen.shapes, config)
    rows = MaskedRows(frames, Masks(cohort, seen.values), [0], 2)
    sizes = set()
    for epoch in range(8):
        rows.set_epoch(epoch)
        example = rows[0]
        shown, told = example["x"][0] > 0.5, example["labels"] > 0
        sizes.add(int(told.sum()))
        # The picture is smoothed at its edges, and the mask is not.
        assert 2 * (shown & told).sum() > 0.97 * (shown.sum() + told.sum())
    assert len(sizes) > 4
