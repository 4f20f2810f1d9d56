"""Boxes of a manifest: one cell an image, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from galenic.core.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
# Class of a box that names none.
UNNAMED = "finding"
CORNERS = ("x1", "y1", "x2", "y2")
# A column with this ending holds one box a cell, 'x y width height'; its name is the class.
ONE_BOX = "_xywh"
EXPECTED = (
    "[] or a JSON list of boxes in pixels, [x1, y1, x2, y2] or [x1, y1, x2, y2, class] each, "
    'or of objects {"x1": .., "y1": .., "x2": .., "y2": .., "class": ..}'
)
# Share of a box that must still be in sight after a crop or a shift.
IN_SIGHT = 0.25
Entry = tuple[float, float, float, float, str]


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image; none on a background image.

    Attributes:
        corners: x1, y1, x2, y2 in pixels, from the upper left corner; float64 [n, 4].
        classes: Place of each class; int64 [n].
    """

    corners: Array
    classes: Array

    def __len__(self) -> int:
        return len(self.classes)

    def keep(self, which: Array) -> Boxes:
        """Some of the boxes."""
        return Boxes(self.corners[which], self.classes[which])

    def moved(self, right: float, down: float) -> Boxes:
        """So many pixels to the right and down."""
        return Boxes(self.corners + np.array([right, down, right, down], float), self.classes)

    def scaled(self, size: tuple[int, int], to: tuple[int, int]) -> Boxes:
        """In an image (width, height) that is resized from `size`."""
        factor = np.array(to, float) / np.array(size, float)
        return Boxes(self.corners * np.tile(factor, 2), self.classes)


@dataclass(frozen=True)
class Truth:
    """Every true box of a set of images.

    Attributes:
        image: Place of its image [n], 0 to images - 1.
        corners: x1, y1, x2, y2 [n, 4].
        classes: [n].
    """

    image: Array
    corners: Array
    classes: Array


@dataclass(frozen=True)
class Found:
    """Every detection on a set of images; as `Truth`, with a score [n]."""

    image: Array
    corners: Array
    classes: Array
    score: Array


def is_boxes(columns: Sequence[str], values: pd.Series) -> bool:
    """Whether label columns hold boxes: JSON lists, or one box a cell in columns `..._xywh`."""
    if all(column.endswith(ONE_BOX) for column in columns):
        return True
    known = values.dropna()
    if len(columns) > 1:
        return False
    lists = (
        [cell for cell in known if pd.api.types.is_list_like(cell)] if known.dtype == object else []
    )
    if lists:
        # A list of names is a label of several classes.
        return not any(isinstance(entry, str) for cell in lists for entry in cell)
    cells = known.astype(str).str.strip()
    cells = cells[cells != ""]
    return bool(len(cells) and cells.str.startswith("[").all())


def names_of(table: pd.DataFrame, columns: Sequence[str]) -> tuple[str, ...]:
    """The classes of all boxes, in order.

    Raises:
        DataError: If a cell holds no boxes, or there is none in any.
    """
    found = {entry[4] for entries in _rows(table, columns) for entry in entries}
    if not found:
        raise DataError(
            "There is no box in any row.", where=f"column '{columns[0]}'", expected=EXPECTED
        )
    return tuple(sorted(found))


def read_boxes(table: pd.DataFrame, columns: Sequence[str], classes: Sequence[str]) -> list[Boxes]:
    """Boxes of every row.

    Raises:
        DataError: If a cell holds no boxes, or a box a class that is not among `classes`.
    """
    places = {name: place for place, name in enumerate(classes)}
    found = []
    for row, entries in enumerate(_rows(table, columns)):
        strange = next((entry[4] for entry in entries if entry[4] not in places), None)
        if strange is not None:
            raise DataError(
                f"Class '{strange}' of a box is none of the classes.",
                where=f"row {row}, column '{columns[0]}'",
                expected=", ".join(classes),
            )
        corners = np.array([entry[:4] for entry in entries], dtype=float).reshape(-1, 4)
        codes = np.array([places[entry[4]] for entry in entries], dtype=np.int64)
        found.append(Boxes(corners, codes))
    return found


def has_box(table: pd.DataFrame, columns: Sequence[str]) -> Array:
    """1 where a row has a box, else 0; int64 [n]."""
    return np.array([bool(entries) for entries in _rows(table, columns)], dtype=np.int64)


def clipped(boxes: Boxes, size: tuple[int, int], least: float = 0.0) -> Boxes:
    """What of each box lies in an image; boxes without any area are left out.

    Args:
        boxes: Of one image.
        size: Its width and height.
        least: Share of a box that must lie inside.
    """
    edge = np.array([*size, *size], float)
    inside = Boxes(np.clip(boxes.corners, 0, edge), boxes.classes)
    area = areas(inside.corners)
    return inside.keep((area > 0) & (area >= least * areas(boxes.corners)))


def areas(corners: Array) -> Array:
    """Areas [n] of boxes [n, 4]; 0 where a side is not positive."""
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def drawn_along(boxes: Boxes, size: tuple[int, int], draw: dict[str, Any]) -> Boxes:
    """The boxes after :func:`galenic.data.augment.apply` changed their image.

    Args:
        boxes: In the image before.
        size: Its width and height.
        draw: What was drawn.

    Returns:
        Boxes in the image after; those of which less than a quarter is in sight are left out.
    """
    width, height = size
    x1, y1, x2, y2 = boxes.corners.T
    for _ in range(draw.get("turns", 0)):
        # A quarter turn against the clock takes (x, y) to (y, width - x).
        x1, y1, x2, y2 = y1, width - x2, y2, width - x1
        width, height = height, width
    if draw["flip"]:
        x1, x2 = width - x2, width - x1
    down, right = draw["shift"]
    turned = Boxes(np.stack([x1, y1, x2, y2], axis=1), boxes.classes)
    return clipped(turned.moved(right, down), (width, height), IN_SIGHT)


def _rows(table: pd.DataFrame, columns: Sequence[str]) -> Iterable[list[Entry]]:
    cells = zip(*(table[column] for column in columns), strict=True)
    for row, values in enumerate(cells):
        found: list[Entry] = []
        for column, cell in zip(columns, values, strict=True):
            try:
                found += _one(column, cell) if column.endswith(ONE_BOX) else _entries(cell)
            except (ValueError, TypeError, KeyError):
                raise DataError(
                    "The cell holds no boxes.",
                    where=f"row {row}, column '{column}'",
                    expected="x y width height" if column.endswith(ONE_BOX) else EXPECTED,
                ) from None
        yield found


def _entries(cell: Any) -> list[Entry]:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return []
    if isinstance(cell, str) and not cell.strip():
        return []
    items = json.loads(cell) if isinstance(cell, str) else list(cell)
    if not isinstance(items, list):
        raise ValueError("no list")
    return [_entry(item) for item in items]


def _entry(item: Any) -> Entry:
    if isinstance(item, dict):
        numbers, name = [item[key] for key in CORNERS], item.get("class", UNNAMED)
    else:
        values = list(item)
        if len(values) not in (4, 5):
            raise ValueError("neither 4 nor 5 values")
        numbers, name = values[:4], values[4] if len(values) == 5 else UNNAMED
    x1, y1, x2, y2 = (float(number) for number in numbers)
    if not np.isfinite([x1, y1, x2, y2]).all():
        raise ValueError("not finite")
    return x1, y1, x2, y2, str(name)


def _one(column: str, cell: Any) -> list[Entry]:
    if pd.isna(cell) or str(cell).strip() == "":
        return []
    x, y, width, height = (float(part) for part in str(cell).split())
    name = column.removesuffix(ONE_BOX).removesuffix("_box")
    return [_entry([x, y, x + width, y + height, name])]
