"""Plain text files."""

from __future__ import annotations

from pathlib import Path

from galenic.data.readers._guard import guarded, require_size

MODALITY = "text"
SUFFIXES = (".txt",)


def read(path: Path) -> str:
    """The text, in UTF-8.

    Raises:
        DataError: If it is not UTF-8.
    """
    with guarded(path, "text"):
        require_size((max(path.stat().st_size, 1),), "text")
        return path.read_text(encoding="utf-8")
