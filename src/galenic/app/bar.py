"""A bar for work that goes tensor by tensor."""

from __future__ import annotations

from typing import Any


class Bar:
    """A bar on a terminal, nothing elsewhere.

    Args:
        title: What is done.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, done: int, total: int, name: str) -> None:
        """Called after every tensor."""
        import sys

        if not sys.stderr.isatty():
            return
        if self._progress is None:
            from rich.progress import Progress

            from galenic.app import screen

            self._progress = Progress(console=screen.console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=total)
        self._progress.update(self._task, completed=done, description=name[-40:])
