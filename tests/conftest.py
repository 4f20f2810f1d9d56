"""Fixtures that every room shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from galenic.core.progress import tell

ROOT = Path(__file__).resolve().parent.parent
# Patients are numbered from here where no page may name them.
SECRET = 987_000


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """What libraries and earlier files left is not gone through again.

    Every fit collects garbage twice, and a quarter of the suite's time went into half a million
    objects that never go.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    """What a user is told once is told in each test."""
    tell.cache_clear()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    folder = Path(os.environ.get("GALENIC_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: set GALENIC_DATA (looked in {folder.name})")
    return folder


@pytest.fixture(scope="session")
def bright_squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 60 pictures of 60 patients, each with a bright square left or right."""
    folder = tmp_path_factory.mktemp("bright_squares")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        pixels = rng.integers(0, 60, (32, 32), dtype=np.uint8)
        start = 4 if number % 2 else 20
        pixels[10:20, start : start + 8] += 180
        Image.fromarray(pixels).save(folder / f"{number}.png")
        who = {"patient_id": f"SECRET-{SECRET + number}", "label": f"side {number % 2}"}
        rows.append({"image": f"{number}.png", **who})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"
