"""Drawn slices of brains, some with a tumour: patients, slices and boxes, and nothing real."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from galenic.core.files import atomic_folder
from galenic.core.seeding import rng
from galenic.data.samples._sample import SampleCohort, samples_folder

Array = np.ndarray[Any, np.dtype[Any]]
VERSION = 2
SIDE = 96
NORMAL, TUMOUR = 140, 60
SLICES = 12
# A tumour is seen in so many slices; every brain has so many bright spots that are none.
SEEN = (3, 6)
SPOTS = (4, 9)


def build() -> SampleCohort:
    """200 patients of 12 slices; 60 have one tumour, seen in 3 to 6 neighbouring slices.

    Bright spots of the size of vessels lie in every brain: what is bright and small is no tumour.
    """
    root = samples_folder() / f"brain-slices-{VERSION}"
    if not root.is_dir():
        with atomic_folder(root) as aside:
            rows = []
            for patient in range(NORMAL + TUMOUR):
                pictures, boxes = _patient(patient, tumour=patient % 10 < 3)
                for place, (picture, box) in enumerate(zip(pictures, boxes, strict=True)):
                    name = f"{patient:03d}-{place:02d}.png"
                    Pillow.fromarray(picture).save(aside / name)
                    rows.append((name, patient, place, json.dumps(box)))
            columns = ["image", "patient", "slice", "boxes"]
            pd.DataFrame(rows, columns=columns).to_csv(aside / "manifest.csv", index=False)
    return SampleCohort(
        table=pd.read_csv(root / "manifest.csv"),
        inputs=["image"],
        label="boxes",
        patient_id="patient",
        title="Drawn brain slices, 60 patients with a tumour and 140 without (simulated)",
        license="drawn by galenic",
        root=root,
    )


def _patient(number: int, *, tumour: bool) -> tuple[Array, list[list[Any]]]:
    """Slices uint8 [SLICES, SIDE, SIDE] from below to above, and the boxes of each."""
    draw = rng(0, "brain_slices", number)
    axis = (np.arange(SIDE) - SIDE / 2) / (SIDE / 2)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    height = np.linspace(-0.8, 0.8, SLICES)[:, None, None]
    wide, tall = draw.uniform(0.62, 0.74), draw.uniform(0.76, 0.88)
    radius = (x / wide) ** 2 + (y / tall) ** 2 + 0.35 * height**2
    skull = (radius > 0.92) & (radius < 1.08)
    middle = ((np.abs(x) - 0.12) / 0.07) ** 2 + (y / 0.26) ** 2
    ventricle = middle + (2 * height) ** 2 < 1
    noise = gaussian_filter(draw.normal(size=(SLICES, SIDE, SIDE)), (0.7, 2.5, 2.5))
    values = 0.45 + 0.25 * noise / noise.std() * 0.25
    values = np.where(ventricle, 0.15, values) * (radius < 1)
    values = values + 0.8 * skull
    for _ in range(int(draw.integers(*SPOTS, endpoint=True))):
        values = values + draw.uniform(0.25, 0.5) * _blob(draw, x, y, draw.uniform(0.02, 0.045), 1)
    boxes: list[list[Any]] = [[] for _ in range(SLICES)]
    if tumour:
        seen = int(draw.integers(*SEEN, endpoint=True))
        mass = _blob(draw, x, y, draw.uniform(0.12, 0.22), seen)
        values = values + draw.uniform(0.16, 0.3) * mass * (radius < 1)
        boxes = [_box(part) for part in mass * (radius < 1) > 0.5]
    values = values * draw.uniform(0.8, 1.1) + draw.normal(0, 0.03, values.shape)
    return (np.clip(values, 0, 1) * 255).astype(np.uint8), boxes


def _blob(draw: np.random.Generator, x: Array, y: Array, size: float, slices: int) -> Array:
    """A soft, uneven ball [SLICES, SIDE, SIDE], 0 to 1, inside the brain."""
    turn, far = draw.uniform(0, 2 * np.pi), draw.uniform(0.1, 0.45)
    low = int(draw.integers(0, SLICES - slices + 1))
    dx, dy = x - far * np.cos(turn), y - far * np.sin(turn)
    angle = np.arctan2(dy, dx)
    waves = sum(
        draw.uniform(0, 0.12) * np.cos(k * angle + draw.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    profile = np.zeros(SLICES)
    profile[low : low + slices] = np.sin(np.pi * (np.arange(slices) + 1) / (slices + 1)) ** 0.5
    edge = size * profile[:, None, None] * (1 + waves)
    reach = np.hypot(dx, dy)[None]
    return np.where(edge > 0, 1 / (1 + np.exp(np.clip((reach - edge) / 0.015, -40, 40))), 0.0)


def _box(mask: Array) -> list[list[Any]]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    corners = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return [[*(int(corner) for corner in corners), "tumour"]]
