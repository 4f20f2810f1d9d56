"""A normalisation of its own for each source of a cohort: data set, hospital or device.

Xiao et al., WACV 2023, arXiv 2210.12843, normalise each of their data sets by its own mean and
standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from galenic.core.errors import ConfigError, DataError
from galenic.core.inputs import InputSpec
from galenic.core.progress import track
from galenic.data import transforms
from galenic.data.cohort import Cohort
from galenic.data.manifest import require_column
from galenic.pipeline.inputs import Array, single_input

SITE = "site"


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Mean and standard deviation of each source, on intensities scaled to 0..1.

    Attributes:
        column: Of the manifest.
        names: Of the sources.
        codes: The source of each row [n]; -1 where a row of no part has another one.
        mean: [sources, C].
        std: [sources, C].
        counts: Training samples of each source [sources].
    """

    column: str
    names: tuple[str, ...]
    codes: Array
    mean: Array
    std: Array
    counts: Array

    def specs(self, spec: InputSpec) -> list[InputSpec]:
        """What the network wants, for each source."""
        return [
            replace(spec, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
            for mean, std in zip(self.mean, self.std, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = zip(self.names, self.mean, self.std, self.counts, strict=True)
        return {
            "column": self.column,
            "sources": {
                name: {"mean": mean.tolist(), "std": std.tolist(), "samples": int(count)}
                for name, mean, std, count in found
            },
        }


def normalisation(
    cohort: Cohort, train: Array, held: Array, spec: InputSpec, column: str
) -> Normalisation:
    """Statistics of all pixels of the training pictures of each source, in the network's size.

    Args:
        cohort: One input column, of pictures or volumes.
        train: Rows that the statistics are learnt from; no other is read.
        held: Rows of the other parts.
        spec: What the network wants.
        column: That names the source of a row; `site` also stands for the cohort's own column of
            sites.

    Raises:
        ConfigError: If the input is neither picture nor volume.
        DataError: If there is no such column, a cell is blank, a source has no training row, or
            all its pixels are alike.
    """
    place, modality = single_input(cohort)
    if modality not in ("image", "volume"):
        raise ConfigError(
            f"The input is {modality}: its intensities have no scale in common.",
            where="normalise_by",
            expected="a cohort of images or volumes",
            next_step="normalise_by=null",
        )
    column, names, codes = _sources(cohort, train, held, column)
    plain = transforms.build(replace(spec, mean=None, std=None), modality)
    sums = np.zeros((2, len(names), spec.channels))
    counts, pixels = np.zeros(len(names), dtype=np.int64), np.zeros(len(names))
    for row in track(train.tolist(), "measuring every source"):
        values = plain.apply(cohort.read(row)[place]).astype(np.float64)
        axis = values.ndim - 1 - len(spec.size or (1, 1))
        rest = tuple(other for other in range(values.ndim) if other != axis)
        sums[:, codes[row]] += values.sum(axis=rest), np.square(values).sum(axis=rest)
        counts[codes[row]] += 1
        pixels[codes[row]] += values.size / spec.channels
    mean, square = sums / pixels[:, None]
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    if (std < 1e-6).any():
        name = names[int(np.flatnonzero((std < 1e-6).any(axis=1))[0])]
        raise DataError(
            f"All pixels of the training pictures of '{name}' are alike.",
            where=f"{cohort.name}, column '{column}'",
            next_step="`galenic check` looks at every picture.",
        )
    return Normalisation(column, names, codes, mean, std, counts)


def _sources(
    cohort: Cohort, train: Array, held: Array, column: str
) -> tuple[str, tuple[str, ...], Array]:
    """The column, the sources of the training rows by name, and the source of each row."""
    if column == SITE and SITE not in cohort.table and cohort.site_column is not None:
        column = cohort.site_column
    require_column(column, cohort.table.columns)
    cells, where = cohort.table[column], f"{cohort.name}, column '{column}'"
    blank = np.flatnonzero(cells.isna())
    if len(blank):
        raise DataError(
            f"{len(blank)} row(s) name no source, the first is row {blank[0]}.",
            where=where,
            expected="a source in every row",
        )
    texts = cells.astype(str).to_numpy()
    names = tuple(sorted(set(texts[train])))
    codes = np.array([names.index(text) if text in names else -1 for text in texts])
    if lost := sorted(set(texts[held]) - set(names)):
        raise DataError(
            f"No training row is of source {', '.join(map(repr, lost[:5]))}.",
            where=where,
            expected="training rows of every source, which its mean is learnt from",
            next_step="Split otherwise, join rare sources, or take normalise_by=null.",
        )
    return column, names, codes
