"""Label columns as arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from galenic.core.errors import DataError
from galenic.data.boxes import has_box, is_boxes, names_of
from galenic.data.mask_cells import are_masks
from galenic.data.readers import modality_of
from galenic.data.tables import words

# Classes that an error lists.
SHOWN = 5
Array = np.ndarray[Any, np.dtype[Any]]
LabelKind = Literal["binary", "multiclass", "multilabel", "ordinal", "continuous", "boxes", "mask"]
KINDS = ("binary", "multiclass", "multilabel", "ordinal", "continuous", "boxes", "mask")
# More distinct numbers than this, and a numeric column is a measurement, not a class.
MOST_NUMERIC_CLASSES = 20
# Between the names in one cell, as in PTB-XL (';') and ChestX-ray14 ('|').
BETWEEN = r"[;|]"
# What a column of such a kind holds.
HELD = {"boxes": "a column of boxes as JSON", "mask": "a column that names a mask file a row"}


@dataclass(frozen=True)
class LabelSpec:
    """What is to be predicted.

    Attributes:
        kind: binary, multiclass, multilabel, ordinal, continuous, boxes or mask.
        columns: The manifest columns that hold it.
        classes: Names in the order of their codes; the columns for multilabel, or the names in
            the cells of its one column; () if continuous or a mask.
    """

    kind: LabelKind
    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Logits that say it: one for a value and for the second of two classes."""
        return 1 if self.kind in ("binary", "continuous") else len(self.classes)


class Parts(Protocol):
    """Row numbers of the three parts."""

    @property
    def train(self) -> Array: ...
    @property
    def val(self) -> Array: ...
    @property
    def test(self) -> Array: ...


def infer(table: pd.DataFrame, columns: Sequence[str], kind: LabelKind | None = None) -> LabelSpec:
    """What kind of label the columns hold, or a check that they can hold `kind`.

    Raises:
        DataError: If nothing is labelled, only one class is there, or values do not fit `kind`.
    """
    columns = tuple(columns)
    if kind == "boxes" or (kind is None and is_boxes(columns, table[columns[0]])):
        return LabelSpec("boxes", columns, names_of(table, columns))
    if kind == "mask" or (kind is None and len(columns) == 1 and are_masks(table[columns[0]])):
        return LabelSpec("mask", columns)
    lists = len(columns) == 1 and _are_lists(table[columns[0]])
    if lists and kind is None:
        kind = "multilabel"
    if kind == "multilabel" and len(columns) == 1 and (lists or _is_words(table[columns[0]])):
        names = _listed(table[columns[0]]).explode().dropna().unique()
        return LabelSpec("multilabel", columns, tuple(sorted(names)))
    if len(columns) > 1 or kind == "multilabel":
        if kind not in (None, "multilabel"):
            raise DataError(
                f"{len(columns)} label columns were given for a {kind} label.",
                expected="one column, or kind multilabel",
            )
        for column in columns:
            _zero_one(table[column])
        return LabelSpec("multilabel", columns, columns)
    column = columns[0]
    values = table[column].dropna()
    if values.empty:
        raise DataError(f"Label column '{column}' has no value in any row.")
    if lists:
        raise DataError(
            f"Label column '{column}' holds lists, which are no {kind} label.",
            expected="one class or number a row",
            next_step="--kind multilabel",
        )
    distinct = values.drop_duplicates()
    if kind == "continuous" or (kind is None and _is_measurement(distinct)):
        _numbers(values)
        if len(distinct) < 2:
            raise DataError(
                f"Label column '{column}' has only one value: {values.iloc[0]}.",
                expected="a measurement that varies",
            )
        return LabelSpec("continuous", columns)
    if all(modality_of(str(value)) for value in distinct):
        raise DataError(
            f"Label column '{column}' names files, such as '{distinct.iloc[0]}'.",
            expected="a class or a number a row",
            next_step="Name another column with --label.",
        )
    classes = _classes(distinct)
    if len(classes) < 2:
        raise DataError(
            f"Label column '{column}' has only one class: '{classes[0]}'.",
            expected="at least two classes",
            next_step="Choose another column with --label.",
        )
    if kind == "binary" and len(classes) > 2:
        raise DataError(f"Label column '{column}' has {len(classes)} classes, not two.")
    found: LabelKind = kind or ("binary" if len(classes) == 2 else "multiclass")
    return LabelSpec(found, columns, classes)


def encode(spec: LabelSpec, table: pd.DataFrame) -> Array:
    """Targets of every row.

    Returns:
        int64 [n] with -1 for a missing label (binary, multiclass, ordinal); float32 [n, C] with
        NaN for unknown (multilabel); float32 [n] with NaN for missing (continuous); int64 [n], 1
        where there is a box (boxes: a blank cell is an image without any); int64 [n], 0 where a
        mask is named and -1 where none is (mask).

    Raises:
        DataError: If a value is none of the classes.
    """
    if spec.kind == "boxes":
        return has_box(table, spec.columns)
    if spec.kind == "mask":
        return np.where(table[spec.columns[0]].isna(), -1, 0).astype(np.int64)
    if spec.kind == "multilabel" and spec.classes != spec.columns:
        return _indicators(spec, table[spec.columns[0]])
    if spec.kind == "multilabel":
        return np.stack([_zero_one(table[column]) for column in spec.columns], axis=1)
    values = table[spec.columns[0]]
    if spec.kind == "continuous":
        return _numbers(values).to_numpy(dtype=np.float32, na_value=np.nan)
    codes = pd.Index(spec.classes).get_indexer(pd.Index(words(values))).astype(np.int64)
    strange = (codes < 0) & values.notna().to_numpy()
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        raise DataError(
            f"Label '{values.iloc[row]}' is none of the classes.",
            where=f"row {row}, column '{spec.columns[0]}'",
            expected=", ".join(spec.classes),
        )
    return codes


def unknown(targets: Array) -> Array:
    """Which targets nobody gave [n, labels], of targets as :func:`encode` gives them."""
    found = np.isnan(targets) if targets.dtype.kind == "f" else targets < 0
    return np.asarray(found).reshape(len(targets), -1)


def missing(targets: Array) -> Array:
    """Rows [n] that have no label at all."""
    return np.asarray(unknown(targets).all(axis=1))


def require_seen(spec: LabelSpec, targets: Array, parts: Parts) -> None:
    """Check that training can teach every class that is asked for later.

    Raises:
        DataError: If a class of validation or test is never seen in training, or training has
            one class only, or the label holds boxes or masks.
    """
    if spec.kind == "continuous":
        return
    if spec.kind == "boxes":
        raise DataError(
            f"Label column '{spec.columns[0]}' holds boxes.",
            expected="a class or a number a row",
            next_step="galenic run brain-tumor-ptp, which detects, or another --label",
        )
    if spec.kind == "mask":
        raise DataError(
            f"Label column '{spec.columns[0]}' names masks.",
            expected="a class or a number a row",
            next_step="galenic run segment, or another --label",
        )
    if spec.kind == "multilabel":
        for place, name in enumerate(spec.classes):
            known = targets[parts.train, place]
            if len(np.unique(known[~np.isnan(known)])) < 2:
                raise DataError(
                    f"Label '{name}' has only one value in training.",
                    next_step="Leave the column out, or split otherwise: split.how=...",
                )
        return
    seen = set(targets[parts.train].tolist()) - {-1}
    later = set(targets[np.concatenate([parts.val, parts.test])].tolist()) - {-1}
    unseen = sorted(later - seen)
    refuse_unseen([spec.classes[code] for code in unseen], spec.columns[0])
    if len(seen) < 2:
        raise DataError("Training has only one class.", where=f"column '{spec.columns[0]}'")


def require_kind(
    spec: LabelSpec | None, kind: Literal["boxes", "mask"], table: pd.DataFrame, name: str
) -> LabelSpec:
    """The label of a cohort, which is of the kind that a task needs.

    Args:
        spec: Of the cohort.
        kind: Of the task.
        table: Of the cohort; the error names its columns that hold such a label.
        name: Of the cohort.

    Raises:
        DataError: If it is of another kind, or there is none.
    """
    if spec is not None and spec.kind == kind:
        return spec
    held = "no label" if spec is None else f"{spec.kind} labels in '{spec.columns[0]}'"
    raise DataError(
        f"The cohort has {held}, but the task needs the kind '{kind}'.",
        where=name,
        expected=HELD[kind],
        next_step=_label_options(kind, table),
    )


def _label_options(kind: Literal["boxes", "mask"], table: pd.DataFrame) -> str:
    """`--label` with the columns that hold such a label; those that are called so, if any are."""
    holds = are_masks if kind == "mask" else lambda cells: is_boxes([str(cells.name)], cells)
    found = [str(name) for name in table if holds(table[name])]
    named = [name for name in found if kind in name.lower()]
    return "--label " + (", or ".join((named or found)[:SHOWN]) or "COLUMN")


def refuse_unseen(classes: Sequence[str], column: str) -> None:
    """Refuse classes that only validation or test has.

    Raises:
        DataError: If there is one; names them.
    """
    if not classes:
        return
    names = ", ".join(f"'{name}'" for name in classes[:SHOWN])
    names += f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
    raise DataError(
        f"Never seen in training: {names}.",
        where=f"label column '{column}'",
        expected="every class of validation and test in training too",
        next_step="Leave the class out, or split otherwise.",
    )


def _is_words(values: pd.Series) -> bool:
    """Whether the cells hold names, and not 0, 1, true or false."""
    known = values.dropna().replace({"True": 1, "False": 0})
    return bool(len(known) and pd.to_numeric(known, errors="coerce").isna().any())


def _are_lists(values: pd.Series) -> bool:
    return values.dtype == object and bool(values.map(pd.api.types.is_list_like).any())


def _listed(values: pd.Series) -> pd.Series:
    """The names in each cell, a list or parted by `BETWEEN`; missing where the cell is blank."""
    parts = values.dropna().map(
        lambda cell: cell if pd.api.types.is_list_like(cell) else re.split(BETWEEN, str(cell))
    )
    names = parts.map(lambda cell: [str(name).strip() for name in cell if str(name).strip()])
    return names[names.map(len) > 0].reindex(values.index)


def _indicators(spec: LabelSpec, values: pd.Series) -> Array:
    found = np.zeros((len(values), len(spec.classes)), np.float32)
    places = {name: place for place, name in enumerate(spec.classes)}
    for row, names in enumerate(_listed(values)):
        if not isinstance(names, list):
            found[row] = np.nan
            continue
        for name in names:
            if name not in places:
                raise DataError(
                    f"Label '{name}' is none of the classes.",
                    where=f"row {row}, column '{spec.columns[0]}'",
                    expected=", ".join(spec.classes),
                )
            found[row, places[name]] = 1.0
    return found


def _is_measurement(distinct: pd.Series) -> bool:
    numeric = pd.to_numeric(distinct, errors="coerce")
    if numeric.isna().any() or pd.api.types.is_bool_dtype(distinct):
        return False
    whole = np.all(np.mod(numeric, 1) == 0)
    return bool(not whole or len(numeric) > MOST_NUMERIC_CLASSES)


def _classes(distinct: pd.Series) -> tuple[str, ...]:
    numeric = pd.to_numeric(distinct, errors="coerce")
    if numeric.notna().all() and not pd.api.types.is_bool_dtype(distinct):
        distinct = distinct.iloc[np.argsort(numeric, kind="stable")]
        return tuple(words(distinct).unique())
    return tuple(sorted(words(distinct).unique()))


def _numbers(values: pd.Series) -> pd.Series:
    numeric = pd.to_numeric(values, errors="coerce")
    bad = numeric.isna() & values.notna()
    if bad.any() or np.isinf(numeric.dropna()).any():
        row = int(np.flatnonzero(bad if bad.any() else np.isinf(numeric))[0])
        raise DataError(
            f"'{values.iloc[row]}' is no finite number.",
            where=f"row {row}, label column '{values.name}'",
            expected="a number, or blank",
        )
    return numeric


def _zero_one(values: pd.Series) -> Array:
    numbers = _numbers(values.replace({"True": 1, "False": 0, True: 1, False: 0}))
    array = numbers.to_numpy(dtype=np.float32, na_value=np.nan)
    strange = ~(np.isnan(array) | (array == 0) | (array == 1))
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        raise DataError(
            f"'{values.iloc[row]}' is neither 0 nor 1 nor blank.",
            where=f"row {row}, label column '{values.name}'",
            expected="0, 1, or blank for unknown",
        )
    return array
