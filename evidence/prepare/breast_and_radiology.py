"""Breast ultrasound and radiological pictures in one cohort, each with a category to describe.

    python evidence/prepare/breast_and_radiology.py BREAST RADIOLOGY TARGET

BREAST holds the 180 pictures of BUSI and their `manifest.csv`, RADIOLOGY the 314 of VQA-RAD and
their `qa.csv`. TARGET gets all of them, the longer side at most 192 pixels, and `manifest.csv` with
the columns `kind` and `label`. Pictures of one case are one patient; BUSI names no patients, and
each of its pictures is one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from PIL import Image

SIDE = 192
REGIONS = {"CHEST": "chest", "ABD": "abdomen", "HEAD": "head"}


def main(breast: Path, radiology: Path, target: Path) -> None:
    """Shrink, write and list."""
    busi = pd.read_csv(breast / "manifest.csv")
    qa = pd.read_csv(radiology / "qa.csv", keep_default_na=False).drop_duplicates("image_name")
    rows = [
        (breast / name, f"breast {number}", "breast ultrasound", label)
        for number, (name, label) in enumerate(zip(busi["image"], busi["label"], strict=True))
    ]
    rows += [
        (radiology / "images" / name, f"case {group}", "radiology", REGIONS[organ])
        for name, group, organ in zip(
            qa["image_name"], qa["case_group"], qa["image_organ"], strict=True
        )
    ]
    (target / "images").mkdir(parents=True, exist_ok=True)
    listed = []
    for number, (path, patient, kind, label) in enumerate(rows):
        name = f"images/{number:03d}.png"
        picture = Image.open(path).convert("L")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(target / name)
        listed.append({"patient_id": patient, "image": name, "kind": kind, "label": label})
    pd.DataFrame(listed).to_csv(target / "manifest.csv", index=False)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
