"""Cells of blood films, one a picture, in very unequal classes.

    python evidence/prepare/blood_cells.py SOURCE TARGET

SOURCE holds the films and boxes of BCCD. TARGET gets `images/`, crops of 32 x 32 pixels, and
`manifest.csv` with `cell` (RBC, WBC, Platelets) and `red` (yes, no). Drawn once: at most four red
cells a film, every second white cell, every fifth platelet. A film counts as a patient.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from PIL import Image

SIDE, RED, SEED = 32, 4, 0
EVERY = {"WBC": 2, "Platelets": 5}


def main(source: Path, target: Path) -> None:
    """Draw, crop and list."""
    boxes = pd.read_csv(source / "boxes.csv").query("xmax > xmin and ymax > ymin")
    files = pd.read_csv(source / "images.csv").set_index("image_id")["file"]
    boxes = boxes.sample(frac=1, random_state=SEED)
    red = boxes[boxes["label"] == "RBC"].groupby("image_id").head(RED)
    others = [boxes[boxes["label"] == name].iloc[::step] for name, step in EVERY.items()]
    (target / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for box in pd.concat([red, *others]).sort_index().itertuples():
        name = f"images/{box.Index:04d}.png"
        with Image.open(source / files[box.image_id]) as film:
            cell = film.convert("RGB").crop((box.xmin, box.ymin, box.xmax, box.ymax))
        cell.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(target / name)
        isred = "yes" if box.label == "RBC" else "no"
        rows.append({"image": name, "patient_id": box.image_id, "cell": box.label, "red": isred})
    pd.DataFrame(rows).to_csv(target / "manifest.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
