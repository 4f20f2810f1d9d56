"""Progress bars on a terminal, and silence everywhere else."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
# update(done, note=""): how far it is, and what to show beside the bar.
Update = Callable[..., None]


def visible() -> bool:
    """Whether to draw: stderr is a terminal and GALENIC_VERBOSITY is not 0."""
    main = os.environ.get("RANK", "0") == "0"
    return main and sys.stderr.isatty() and os.environ.get("GALENIC_VERBOSITY", "1") != "0"


@contextlib.contextmanager
def bar(description: str, total: float | None = None) -> Iterator[Update]:
    """A progress bar.

    Args:
        description: What is being done.
        total: When it is done; None where nobody knows.

    Yields:
        `update(done, note)`; it does nothing where the bar is not drawn.
    """
    if not visible():
        yield _nothing
        return
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = progress.add_task(description, total=total, note="")
    with contextlib.ExitStack() as stack:
        # A bar within a bar: the outer one stays, the inner one is not drawn.
        with contextlib.suppress(LiveError):
            stack.enter_context(progress)

        def update(done: float, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        yield update


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """`items`, one by one, with a bar that counts them.

    Args:
        items: What to go through.
        description: What is being done.
        total: How many; by default the length of `items`, where it has one.
    """
    if total is None:
        with contextlib.suppress(TypeError):
            total = len(items)  # type: ignore[arg-type]
    with bar(description, total) as update:
        for done, item in enumerate(items, start=1):
            yield item
            update(done)


@functools.cache
def tell(message: str) -> None:
    """Print one line that a user should know of, to stderr; once, however often it is said."""
    main = os.environ.get("RANK", "0") == "0"
    if main and os.environ.get("GALENIC_VERBOSITY", "1") != "0":
        sys.stderr.write(f"note: {message}\n")


def _nothing(done: float, note: str = "") -> None:
    """The update of a bar that is not drawn."""
