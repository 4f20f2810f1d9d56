"""Streams that are made ahead of their consumer."""

import threading
from collections.abc import Iterator

import pytest

from galenic.merging import ahead as module
from galenic.merging.ahead import ahead


def numbers(item: int) -> Iterator[tuple[int, int]]:
    for place in range(item % 40):
        yield item, place


def test_streams_come_whole_and_in_order() -> None:
    items = [39, 0, 3, 25, 1, 38, 7]
    with ahead(numbers, items) as streams:
        found = [list(stream) for stream in streams]
    assert found == [list(numbers(item)) for item in items]


def test_no_items_give_no_streams() -> None:
    with ahead(numbers, []) as streams:
        assert list(streams) == []


def test_an_error_is_raised_in_its_place() -> None:
    def faulty(item: int) -> Iterator[int]:
        yield item
        if item == 2:
            raise KeyError("two")

    seen = []
    with pytest.raises(KeyError, match="two"), ahead(faulty, range(9)) as streams:
        for stream in streams:
            seen.extend(stream)
    assert seen == [0, 1, 2]


def test_a_consumer_that_stops_leaves_no_thread_behind() -> None:
    def endless(item: int) -> Iterator[int]:
        while True:
            yield item

    before = threading.active_count()
    with pytest.raises(OSError, match="disk"), ahead(endless, range(99)) as streams:
        assert next(next(streams)) == 0
        raise OSError("disk")
    assert threading.active_count() == before


def test_little_is_made_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    made: list[int] = []

    def counted(item: int) -> Iterator[int]:
        for _ in range(100):
            made.append(item)
            yield item

    with ahead(counted, range(50)) as streams:
        for _ in next(streams):
            # Three are begun, and of those that wait no more is made than there is room for.
            assert set(made) <= {0, 1, 2}
            assert all(made.count(item) <= module._ROOM + 1 for item in (1, 2))
