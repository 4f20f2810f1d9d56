"""Chest X-rays with their view, and a grade of how much of the picture the lungs fill.

    python evidence/prepare/lungs_in_view.py SOURCE TARGET

SOURCE holds the openly licensed X-rays with lung boxes and their `manifest.csv`. TARGET gets copies
of the pictures and `manifest.csv` with the columns `view` and `grade`: the fifth, 0 to 4, that the
share of the picture in both lung boxes falls into. It stands in for an expert's grade.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

GRADES = 5


def main(source: Path, target: Path) -> None:
    """Grade, copy and list."""
    table = pd.read_csv(source / "manifest.csv")
    (target / "images").mkdir(parents=True, exist_ok=True)
    for name in table["image"]:
        shutil.copyfile(source / name, target / name)
    boxes = [table[f"{side}_lung_box_xywh"].str.split(expand=True).astype(float) for side in
             ("right", "left")]  # fmt: skip
    share = sum(box[2] * box[3] for box in boxes) / (table["width"] * table["height"])
    table["grade"] = pd.qcut(share, GRADES, labels=False)
    table[["image", "patient_id", "view", "grade"]].to_csv(target / "manifest.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
