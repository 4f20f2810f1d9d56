"""What a page shows of a noise policy: pictures, and the masks that it drew for them."""

from __future__ import annotations

from typing import Any

from galenic.app.report.embedded import png_of
from galenic.core.run import Run

FILE = "heated/masks.png"


def read_masks(run: Run) -> dict[str, Any] | None:
    """Context of the section on noise masks; None of a run without them."""
    data = png_of(run.path / FILE)
    return {"data": data, "noise": run.config["noise"]} if data else None
