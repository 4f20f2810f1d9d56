"""Label cells that name a mask: the file of an image or a volume."""

from __future__ import annotations

import pandas as pd

from galenic.data.readers import modality_of

OF_MASKS = {"image", "volume"}


def are_masks(values: pd.Series) -> bool:
    """Whether every cell that is not blank names an image or a volume."""
    known = values.dropna()
    return len(known) > 0 and all(modality_of(str(cell)) in OF_MASKS for cell in known)
