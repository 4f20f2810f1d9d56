"""The folders of BreakHis, whose names of files say all that is known of a picture.

`SOB_<B|M>_<subtype>-<year>-<slide>-<magnification>-<number>.png` (Spanhol et al., IEEE TBME 2016).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from galenic.core.errors import DataError
from galenic.core.progress import tell
from galenic.data.readers import modality_of

NAME = re.compile(
    r"SOB_(?P<label>[BM])_(?P<subtype>A|F|PT|TA|DC|LC|MC|PC)"
    r"-(?P<case>\d+-\d+)(?P<piece>[A-Z]*)-(?P<magnification>40|100|200|400)-\d+\.\w+"
)
LABELS = {"B": "benign", "M": "malignant"}
SUBTYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes tumor",
    "TA": "tubular adenoma",
    "DC": "ductal carcinoma",
    "LC": "lobular carcinoma",
    "MC": "mucinous carcinoma",
    "PC": "papillary carcinoma",
}


def is_breakhis(folder: Path) -> bool:
    """Whether a folder holds a picture, at any depth, that is named as BreakHis names its own."""
    return any(NAME.fullmatch(path.name) for path in folder.rglob("SOB_*"))


def read_breakhis(folder: Path) -> pd.DataFrame:
    """Columns `file`, `label`, `subtype`, `patient_id`, `slide` and `magnification`.

    Pieces of one case, 22549AB and 22549CD, are one patient, though the 82 of the data set count
    them apart. A slide that is filed under two subtypes (13412 is) keeps its label and has no
    subtype.

    Raises:
        DataError: If a picture is named in another way.
    """
    rows, strange = [], []
    for path in sorted(_pictures(folder)):
        found = NAME.fullmatch(path.name)
        if found is None:
            strange.append(str(path.relative_to(folder)))
            continue
        rows.append(
            {
                "file": str(path.relative_to(folder)),
                "label": LABELS[found["label"]],
                "subtype": SUBTYPES[found["subtype"]],
                "patient_id": found["case"],
                "slide": found["case"] + found["piece"],
                "magnification": int(found["magnification"]),
            }
        )
    if strange:
        raise DataError(
            f"{len(strange)} picture(s) are not named as BreakHis names its own.",
            where=strange[0],
            expected="SOB_B_A-14-22549AB-40-001.png",
            next_step="Move them elsewhere, or list what is to be read in a CSV file.",
        )
    table = pd.DataFrame(rows)
    torn = table.groupby("slide")["subtype"].transform("nunique") > 1
    if torn.any():
        slides = table.loc[torn, "slide"].nunique()
        tell(f"{slides} slide(s) of two subtypes: {torn.sum()} pictures have no subtype.")
        table.loc[torn, "subtype"] = None
    return table


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if modality_of(path.name) == "image")
