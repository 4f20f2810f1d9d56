"""Openly licensed medical pictures of many kinds, small, for pre-training without labels.

    python evidence/prepare/open_pictures.py DATA TARGET

DATA is the folder of the data sets. TARGET gets pictures whose longer side is 192 pixels at most,
and `manifest.csv` with `image`, `kind` and `patient_id`: chest X-rays (CC BY, one CC BY-SA left
out), children's chest X-rays at 28 x 28 (800 of PneumoniaMNIST, CC BY), radiological pictures
(VQA-RAD, CC0), lung CT in two windows (TCGA, CC BY), fundus in four quarters (CHASE_DB1, CC BY),
nuclei (DSB 2018, CC0), blood films in four quarters (BCCD, MIT), and stills of lung ultrasound
(CC BY). Breast ultrasound (BUSI) and hippocampi (Decathlon) are left out, to be judged by.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

SIDE = 192
CHILDREN = 800
# Level and width in Hounsfield units: lung, soft tissue.
WINDOWS = ((-600, 1500), (40, 400))
Found = tuple[str, str, Image.Image]


def quarters(picture: Image.Image) -> Iterator[Image.Image]:
    """The four quarters of a picture."""
    middle = (picture.width // 2, picture.height // 2)
    for left in (0, middle[0]):
        for top in (0, middle[1]):
            yield picture.crop((left, top, left + middle[0], top + middle[1]))


def pictures(data: Path) -> Iterator[Found]:
    """Kind, patient and picture."""
    for row in pd.read_csv(data / "covid_cxr_ccby/manifest.csv").itertuples():
        if "SA" not in row.licence:
            path = data / "covid_cxr_ccby" / row.image
            yield "chest_xray", str(row.patient_id), Image.open(path)
    arrays = np.load(data / "pneumoniamnist/pneumoniamnist.npz")
    children = pd.read_csv(data / "pneumoniamnist/manifest.csv")
    children = children[(children.split == "train") & (children.exact_copies == 1)]
    for row in children.sample(CHILDREN, random_state=0).itertuples():
        pixels = arrays["train_images"][row.index]
        yield "child_xray", f"{row.split}{row.index}", Image.fromarray(pixels)
    rows = pd.read_csv(data / "vqa_rad/qa.csv").drop_duplicates("image_name")
    for row in rows.itertuples():
        path = data / "vqa_rad/images" / row.image_name
        yield "radiology", str(row.case_group), Image.open(path)
    for row in pd.read_csv(data / "tcga_lung_ct_slices/manifest.csv").itertuples():
        stored = np.asarray(Image.open(data / "tcga_lung_ct_slices" / row.image), dtype=float)
        units = stored - 1024
        for level, width in WINDOWS:
            shown = np.clip((units - level) / width + 0.5, 0, 1)
            yield "ct", row.patient_id, Image.fromarray((255 * shown).astype(np.uint8))
    for row in pd.read_csv(data / "chase_db1/manifest.csv").itertuples():
        for part in quarters(Image.open(data / "chase_db1" / row.image)):
            yield "fundus", str(row.subject_id), part
    for row in pd.read_csv(data / "dsb2018_nuclei_96/manifest.csv").itertuples():
        yield "nuclei", Path(row.image).stem, Image.open(data / "dsb2018_nuclei_96" / row.image)
    for path in sorted((data / "bccd_blood_cells/images").iterdir()):
        for part in quarters(Image.open(path)):
            yield "blood", path.stem, part
    for row in pd.read_csv(data / "lung_ultrasound_ccby/manifest.csv").itertuples():
        if row.kind == "image":
            path = data / "lung_ultrasound_ccby" / row.media
            yield "lung_ultrasound", str(row.patient_id), Image.open(path)


def main(data: Path, target: Path) -> None:
    """Write the pictures and their manifest."""
    (target / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (kind, patient, picture) in enumerate(pictures(data)):
        picture = picture.convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        name = f"images/{number:05d}.png"
        picture.save(target / name)
        rows.append({"image": name, "kind": kind, "patient_id": f"{kind} {patient}"})
    pd.DataFrame(rows).to_csv(target / "manifest.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
