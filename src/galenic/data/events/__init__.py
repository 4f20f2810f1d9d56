"""Patients in time: one event table, read from what hospitals export (extra `records`)."""

from __future__ import annotations

from importlib.util import find_spec

from galenic.core.errors import MissingExtraError

for _package in ("polars", "orjson"):
    if find_spec(_package) is None:
        raise MissingExtraError.of(_package, "records")

from galenic.data.events.definitions import Definition, label, visible  # noqa: E402
from galenic.data.events.ingest import Events, convert, read  # noqa: E402
from galenic.data.events.schema import empty, ordered, validate  # noqa: E402

__all__ = [
    "Definition",
    "Events",
    "convert",
    "empty",
    "label",
    "ordered",
    "read",
    "validate",
    "visible",
]
