"""One reader a format, found by suffix; a format's library is imported when a file is read.

A reader module has `MODALITY`, `SUFFIXES`, `read(path)` and raises nothing but
:class:`~galenic.core.errors.DataError` and :class:`~galenic.core.errors.MissingExtraError`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from galenic.core import registry
from galenic.core.errors import DataError

if TYPE_CHECKING:
    from galenic.data.values import Value

LONGEST_CELL = 1024


@cache
def _by_suffix() -> dict[str, ModuleType]:
    names = registry.modules(__name__)
    found = [registry.load(__name__, name) for name in names]
    return {suffix: module for module in found for suffix in module.SUFFIXES}


def reader_for(name: str | Path) -> ModuleType | None:
    """The reader of a file, by its suffix; None where there is none."""
    lower = str(name).lower()
    if len(lower) > LONGEST_CELL:
        return None
    suffixes = sorted(_by_suffix(), key=len, reverse=True)
    suffix = next((s for s in suffixes if lower.endswith(s)), None)
    return None if suffix is None else _by_suffix()[suffix]


def modality_of(name: str | Path) -> str | None:
    """What kind of input a file name stands for; None where no reader takes it."""
    reader = reader_for(name)
    return None if reader is None else str(reader.MODALITY)


def read(path: Path) -> Value:
    """The content of a file.

    Raises:
        DataError: If it is missing, of no known format, or broken.
    """
    reader = reader_for(path)
    if reader is None:
        raise DataError(
            f"No reader takes '{path.suffix}'.", expected=", ".join(sorted(_by_suffix()))
        )
    if not path.exists():
        raise DataError(f"There is no file '{path.name}'.")
    value: Value = reader.read(path)
    return value
