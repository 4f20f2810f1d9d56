"""One reader a format, found by suffix; a format's library is imported when a file is read.

A reader module has `MODALITY`, `SUFFIXES`, `read(path)` and raises nothing but
:class:`~galenic.core.errors.DataError` and :class:`~galenic.core.errors.MissingExtraError`.
Where a sample is more than its file it has `parts(path)`, where the header decides about the
modality `modality(path)`, where it reads what has no suffix (folders, records) `takes(path)`, and `header(path)` where the
file tells its size before its content.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from galenic.core import registry
from galenic.core.errors import DataError

if TYPE_CHECKING:
    from galenic.data.values import Header, Value

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


def modality_in(path: Path) -> str | None:
    """What kind of input a file or folder on disk holds: by its header where that decides."""
    reader = _reader_of(path)
    if reader is None:
        return None
    if hasattr(reader, "modality") and path.exists():
        return str(reader.modality(path))
    return str(reader.MODALITY)


def is_here(path: Path) -> bool:
    """Whether a file, folder or record that some reader takes is on disk."""
    reader = _reader_of(path)
    return reader is not None and (path.exists() or reader is not reader_for(path))


def parts_of(path: Path) -> list[Path]:
    """The files that make up a sample, in a fixed order.

    Raises:
        DataError: If it is missing or of no known format.
    """
    reader = _existing(path)
    found: list[Path] = reader.parts(path) if hasattr(reader, "parts") else [path]
    return found


def read(path: Path) -> Value:
    """The content of a file, or of a folder of slices.

    Raises:
        DataError: If it is missing, of no known format, or broken.
    """
    value: Value = _existing(path).read(path)
    return value


def header(path: Path) -> Header | None:
    """What a file says about itself before its content is read; None where its format does not.

    Raises:
        DataError: If it is missing, of no known format, or its header broken.
    """
    reader = _existing(path)
    found: Header | None = reader.header(path) if hasattr(reader, "header") else None
    return found


def _existing(path: Path) -> ModuleType:
    reader = _reader_of(path)
    if reader is None:
        raise DataError(
            f"No reader takes '{path.suffix or path.name}'.",
            expected=", ".join(sorted(_by_suffix())),
        )
    if not is_here(path):
        raise DataError(f"There is no file '{path.name}'.")
    return reader


def _reader_of(path: Path) -> ModuleType | None:
    named = reader_for(path)
    if named is not None or len(path.name) > LONGEST_CELL:
        return named
    return next((module for module in _takers() if module.takes(path)), None)


@cache
def _takers() -> tuple[ModuleType, ...]:
    found = (registry.load(__name__, name) for name in registry.modules(__name__))
    return tuple(module for module in found if hasattr(module, "takes"))
