"""What a page shows of a network of histories: how it answered each task."""

from __future__ import annotations

from typing import Any

from galenic.core.run import Run


def read_tasks(run: Run) -> list[dict[str, Any]] | None:
    """Rows of the section on tasks; None of a run without them."""
    if not (run.path / "tasks.json").is_file():
        return None
    found: list[dict[str, Any]] = run.read_json("tasks.json")
    return found
