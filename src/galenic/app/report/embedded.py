"""Pictures inside the page, so that it stays one file."""

from __future__ import annotations

import base64
from pathlib import Path


def png_of(path: Path) -> str:
    """A picture as the page carries it; '' where there is none."""
    if not path.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
