"""Cubes of a brain in T1 contrast, and the tissue that fills most of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galenic.core.errors import MissingExtraError
from galenic.core.files import atomic_folder
from galenic.core.fingerprint import fingerprint_bytes
from galenic.data.samples._sample import SampleCohort, samples_folder

Array = np.ndarray[Any, np.dtype[Any]]
SIDE = 16
# Cubes of one block stand on one side of a split: neighbours share their edges.
BLOCK = 3
# Share of a cube that must be brain, or the skull would decide.
BRAIN = 0.5
NAME = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
CLASSES = ("fluid and other", "grey matter", "white matter")


def build() -> SampleCohort:
    """Volumes of 16 mm from the MNI152 template that nilearn carries, written as NIfTI once.

    Raises:
        MissingExtraError: If nilearn or nibabel is not installed.
    """
    try:
        import nibabel
        import nilearn
    except ImportError as error:
        raise MissingExtraError.of(error.name or "nilearn", "imaging") from None
    source = Path(nilearn.__file__).parent / "datasets" / "data"
    images = {part: nibabel.load(source / NAME.format(part)) for part in ("t1", "gm", "wm")}
    t1, grey, white = (np.asarray(image.dataobj) for image in images.values())
    table = _cubes(grey / 255.0, white / 255.0, t1 > 0)
    root = samples_folder() / f"mni-tissue-{fingerprint_bytes(t1.tobytes(), str(SIDE))[:12]}"
    if not root.is_dir():
        with atomic_folder(root) as aside:
            for name, x, y, z in table[["file", "x", "y", "z"]].itertuples(index=False):
                cube = t1[x : x + SIDE, y : y + SIDE, z : z + SIDE]
                affine = images["t1"].affine.copy()
                affine[:3, 3] = (images["t1"].affine @ [x, y, z, 1])[:3]
                nibabel.save(nibabel.Nifti1Image(cube, affine), aside / name)
    return SampleCohort(
        table=table[["file", "tissue", "block"]],
        inputs=["file"],
        label="tissue",
        patient_id="block",
        title="MNI152 brain template: the tissue that fills most of a 16 mm cube",
        license="BSD-3-Clause, carried by nilearn; the template is McGill's, free with notice",
        root=root,
    )


def _cubes(grey: Array, white: Array, inside: Array) -> pd.DataFrame:
    rows = []
    for x, y, z in np.ndindex(*(side // SIDE for side in grey.shape)):
        where = tuple(slice(place * SIDE, (place + 1) * SIDE) for place in (x, y, z))
        shares = np.array([grey[where].mean(), white[where].mean()])
        if inside[where].mean() < BRAIN:
            continue
        tissue = CLASSES[int(np.argmax([1 - shares.sum(), *shares]))]
        block = f"block {x // BLOCK}-{y // BLOCK}-{z // BLOCK}"
        rows.append((f"{x}-{y}-{z}.nii.gz", tissue, block, x * SIDE, y * SIDE, z * SIDE))
    return pd.DataFrame(rows, columns=["file", "tissue", "block", "x", "y", "z"])
