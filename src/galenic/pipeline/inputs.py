"""From a cohort to what one backbone takes: the place where data and models meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from galenic.core.errors import DataError
from galenic.core.fingerprint import fingerprint_arrays, fingerprint_bytes
from galenic.core.inputs import InputSpec
from galenic.data import transforms
from galenic.data.augment import AugmentConfig
from galenic.data.cohort import Cohort
from galenic.data.values import Value
from galenic.models.backbone import Backbone

if TYPE_CHECKING:
    from galenic.pipeline.sources import Normalisation

Array = np.ndarray[Any, np.dtype[Any]]
Example = dict[str, Array]


@dataclass(frozen=True)
class Cut:
    """What a token window leaves out of the texts of a cohort.

    Attributes:
        window: Tokens that the backbone reads, its special tokens included.
        texts: How many texts are longer.
        share: Tokens left out, of all tokens.
    """

    window: int
    texts: int
    share: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class Inputs(Dataset[Example]):
    """One example a row of a cohort, ready to be collated for one backbone.

    Args:
        cohort: The samples; one input column.
        backbone: The network that will read them.
        augment: What may be varied in training; None for nothing.
        seed: Of the augmentation. A draw depends on seed, epoch and row alone, so that the
            number of workers changes nothing.
        table: Encoded rows [n, F] where the input is a table.
        scale: Times the sides that the network reads.
        normalisation: Of each source of the cohort; None for the backbone's own.
    """

    def __init__(
        self,
        cohort: Cohort,
        backbone: Backbone,
        *,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        table: Array | None = None,
        scale: float = 1,
        normalisation: Normalisation | None = None,
    ) -> None:
        self.cohort = cohort
        self.column, self.modality = single_input(cohort)
        self.spec = _scaled(backbone.inputs, scale)
        self.table = table
        self.seed = seed
        self.epoch = 0
        self.tokens: dict[str, list[list[int]]] | None = None
        self.cut: Cut | None = None
        self.transform: transforms.Transform | None = None
        self.draws = augment is not None
        if self.modality == "text":
            self.tokens, self.cut = _tokenise(cohort, self.column, backbone)
        elif self.modality != "table":
            self.transform = transforms.build(self.spec, self.modality, augment=augment)
        self.codes: Array | None = None
        self.ways: list[transforms.Transform] = []
        if normalisation is not None and self.transform is not None:
            self.codes = normalisation.codes
            self.ways = [
                replace(self.transform, spec=spec) for spec in normalisation.specs(self.spec)
            ]

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, row: int) -> Example:
        """The inputs of one row, without a batch axis."""
        if self.tokens is not None:
            return {
                key: np.asarray(values[row], dtype=np.int64) for key, values in self.tokens.items()
            }
        if self.table is not None:
            return {self.spec.key: self.table[row]}
        return {self.spec.key: self._drawn(self.cohort.read(row)[self.column], row)}

    def way(self, row: int) -> transforms.Transform:
        """From what one row holds to the network.

        Raises:
            DataError: If nothing of this modality can be drawn.
        """
        if self.transform is None:
            raise DataError(
                f"Column '{self.column}' is {self.modality}, of which no views can be drawn.",
                where=self.cohort.name,
                expected="an image, a volume, a tracing or a sound",
            )
        return self.transform if self.codes is None else self.ways[int(self.codes[row])]

    def views(self, row: int, count: int, value: Value | None = None) -> Array:
        """Several draws of what one row holds, stacked [count, ...]; it is decoded once.

        Args:
            row: Which one.
            count: How many.
            value: What the row holds, where that is decoded already.

        Raises:
            DataError: If nothing of this modality can be drawn.
        """
        self.way(row)
        value = self.cohort.read(row)[self.column] if value is None else value
        return np.stack([self._drawn(value, row, n) for n in range(count)])

    def draw(self, value: Value, row: int, *numbers: int) -> dict[str, Any] | None:
        """How what one row holds is varied in this epoch; None where nothing is.

        Args:
            value: What the row holds.
            row: Which one.
            numbers: Of the draw, where there are several.
        """
        if not self.draws:
            return None
        rng = np.random.default_rng([self.seed, self.epoch, row, *numbers])
        return self.way(row).draw(rng, value)

    def _drawn(self, value: Value, row: int, *numbers: int) -> Array:
        return self.way(row).apply(value, self.draw(value, row, *numbers))

    @property
    def lengths(self) -> Array | None:
        """Tokens of each row of a text cohort; None where all inputs have one size."""
        if self.tokens is None:
            return None
        return np.array([len(ids) for ids in next(iter(self.tokens.values()))])

    def set_epoch(self, epoch: int) -> None:
        """Draw afresh from now on."""
        self.epoch = epoch

    def keys(self, rows: Iterable[int]) -> list[str]:
        """A content key of each row's undrawn input, for the caches; no file is decoded."""
        if self.transform is None:
            return [fingerprint_arrays(self[row]) for row in rows]
        ways = [way.fingerprint for way in self.ways or [self.transform]]
        codes = np.zeros(len(self), dtype=np.int64) if self.codes is None else self.codes
        return [fingerprint_bytes(ways[codes[row]], self.cohort.content(row)) for row in rows]


def _scaled(spec: InputSpec, scale: float) -> InputSpec:
    if scale == 1 or spec.size is None:
        return spec
    return replace(spec, size=tuple(round(scale * side) for side in spec.size))


def single_input(cohort: Cohort) -> tuple[str, str]:
    """Column and modality of the one input.

    Raises:
        DataError: If the cohort has several inputs, or none.
    """
    if len(cohort.inputs) != 1:
        found = ", ".join(f"{name} ({kind})" for name, kind in cohort.inputs.items()) or "none"
        raise DataError(
            f"This task reads one input; the cohort has: {found}.",
            where=cohort.name,
            next_step="Name one: --inputs COLUMN",
        )
    return next(iter(cohort.inputs.items()))


def _tokenise(
    cohort: Cohort, column: str, backbone: Backbone
) -> tuple[dict[str, list[list[int]]], Cut | None]:
    if backbone.tokenizer is None:
        raise DataError(
            f"Column '{column}' is text, but the backbone has no tokenizer.",
            where=cohort.name,
            next_step="Take a text backbone: backbone=builtin:minilm",
        )
    texts = [str(cohort.read(row)[column]) for row in range(len(cohort))]
    encoded = backbone.tokenizer(
        texts, truncation=True, max_length=backbone.inputs.max_length, padding=False
    )
    tokens = {key: list(values) for key, values in encoded.items()}
    return tokens, _cut(texts, tokens, backbone)


def _cut(texts: list[str], tokens: dict[str, list[list[int]]], backbone: Backbone) -> Cut | None:
    window = backbone.inputs.max_length
    if window is None:
        return None
    lengths = np.array([len(ids) for ids in next(iter(tokens.values()))])
    # Only a text that fills the window can be longer.
    full = np.flatnonzero(lengths >= window)
    if not full.size:
        return None
    whole = backbone.tokenizer([texts[i] for i in full], padding=False, verbose=False)["input_ids"]
    missing = np.array([len(ids) for ids in whole]) - lengths[full]
    if not missing.any():
        return None
    return Cut(
        window, int((missing > 0).sum()), float(missing.sum() / (lengths.sum() + missing.sum()))
    )


class Collate:
    """Examples to one batch of tensors; sequences are padded on the right.

    Args:
        padding: The value that fills each sequence key, such as `input_ids`.
    """

    def __init__(self, padding: Mapping[str, int] | None = None) -> None:
        self.padding = dict(padding or {})

    @classmethod
    def of(cls, backbone: Backbone) -> Collate:
        """The collation of a backbone's inputs."""
        if backbone.tokenizer is None:
            return cls()
        pad = backbone.tokenizer.pad_token_id or 0
        zeros = ("attention_mask", "token_type_ids", "slots", "hidden")
        return cls({"input_ids": pad, **dict.fromkeys(zeros, 0)})

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Stacked tensors [B, ...] by key."""
        return {
            key: self._stack(key, [np.asarray(example[key]) for example in examples])
            for key in examples[0]
        }

    def _stack(self, key: str, arrays: list[Array]) -> Tensor:
        if key not in self.padding:
            return torch.from_numpy(np.stack(arrays))
        length = max(len(array) for array in arrays)
        shape = (len(arrays), length, *arrays[0].shape[1:])
        padded = np.full(shape, self.padding[key], dtype=arrays[0].dtype)
        for place, array in zip(padded, arrays, strict=True):
            place[: len(array)] = array
        return torch.from_numpy(padded)
