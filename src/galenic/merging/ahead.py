"""Work that is consumed in order, and done ahead on threads."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Piece = TypeVar("Piece")
# Pieces that are made before they are asked for, of each stream.
_ROOM = 8
# More threads would wait for the one that consumes.
_THREADS = 4


@contextmanager
def ahead(
    stream: Callable[[Item], Iterable[Piece]], items: Sequence[Item]
) -> Iterator[Iterator[Iterator[Piece]]]:
    """The streams of `items` in order, some of which are made while an earlier one is consumed.

    Args:
        stream: Gives the pieces of an item; called on threads, for several items at once.
        items: In the order in which their streams are consumed, each to its end.

    Yields:
        An iterator over the streams. What a stream raises is raised where its pieces are consumed.
    """
    count = min(os.cpu_count() or 1, _THREADS)
    stopped = threading.Event()
    begun: deque[tuple[Future[None], queue.Queue[Piece | None]]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="galenic-ahead") as pool:

        def fill(item: Item, room: queue.Queue[Piece | None]) -> None:
            try:
                for piece in stream(item):
                    if stopped.is_set():
                        return
                    room.put(piece)
            finally:
                room.put(None)

        def begin(item: Item) -> None:
            room: queue.Queue[Piece | None] = queue.Queue(_ROOM)
            begun.append((pool.submit(fill, item, room), room))

        def drain(task: Future[None], room: queue.Queue[Piece | None]) -> Iterator[Piece]:
            while (piece := room.get()) is not None:
                yield piece
            task.result()

        def streams() -> Iterator[Iterator[Piece]]:
            waiting = iter(items)
            # One more than threads, so that none is idle while the first is consumed.
            for item in islice(waiting, count + 1):
                begin(item)
            while begun:
                yield drain(*begun[0])
                begun.popleft()
                for item in islice(waiting, 1):
                    begin(item)

        try:
            yield streams()
        finally:
            stopped.set()
            # A thread that waits for room puts two things at most, and ends.
            for task, room in begun:
                task.cancel()
                while not room.empty():
                    room.get_nowait()
