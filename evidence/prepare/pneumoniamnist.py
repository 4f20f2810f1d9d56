"""PneumoniaMNIST as pictures and a manifest.

    python evidence/prepare/pneumoniamnist.py SOURCE TARGET

SOURCE holds `pneumoniamnist.npz` and the `manifest.csv` of its arrays. TARGET gets 3,000 pictures,
drawn once from those that have no exact copy, and `manifest.csv`. Nobody knows which pictures are of
one child: each is a patient of its own, and the official parts are not kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

COUNT, SEED = 3000, 0


def main(source: Path, target: Path) -> None:
    """Draw, write and list."""
    arrays = np.load(source / "pneumoniamnist.npz")
    listed = pd.read_csv(source / "manifest.csv")
    single = listed[listed["exact_copies"] == 1].sample(COUNT, random_state=SEED).sort_index()
    (target / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (part, place, label) in enumerate(
        single[["split", "index", "label_name"]].itertuples(index=False)
    ):
        name = f"images/{number:04d}.png"
        Image.fromarray(np.squeeze(arrays[f"{part}_images"][place])).save(target / name)
        rows.append({"patient_id": number, "image": name, "label": label})
    pd.DataFrame(rows).to_csv(target / "manifest.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
