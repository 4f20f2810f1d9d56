"""FHIR R4: bundles (`.json`), and the bulk export, one resource a line (`.ndjson`).

Lines are read one after another, and events leave in frames of about :data:`BATCH` rows: memory
holds one frame and one line, or one bundle.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import polars as pl

from galenic.data.events import rejection
from galenic.data.events.fhir_resources import FIELDS, NoEventError, Resources, last
from galenic.data.events.staging import RAW, Intake

BUNDLES = (".json", ".json.gz")
LINES = (".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz")
SUFFIXES = BUNDLES + LINES
BATCH = 1 << 16

# A line that starts like this tells its type before it is parsed; claims are long, and no events.
_TYPE = re.compile(rb'\s*\{"resourceType":"(\w+)"')
_SCHEMA = {name: RAW[name] for name in (*FIELDS, "file", "place")}
_BROKEN = (OSError, EOFError, zlib.error)


def batches(files: Iterable[Path], intake: Intake) -> Iterator[pl.DataFrame]:
    """Staged rows of FHIR files.

    Args:
        files: Bundles and NDJSON, in any mix.
        intake: Gathers what is left out, the names of codes and the Medications.
    """
    reader = _Reader(intake)
    for path in files:
        if path.name.lower().endswith(BUNDLES):
            # The name of a bundle is often that of its patient.
            resources = reader.bundle(path, intake.label(path, "bundle"))
        else:
            resources = reader.lines(path, intake.label(path))
        for _ in resources:
            if len(reader.rows) >= BATCH:
                yield reader.flush()
    yield reader.flush()


class _Reader:
    def __init__(self, intake: Intake) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self._reject = intake.rejections.add
        self._stage = intake.stage
        self._resources = Resources(intake.names, intake.medications)

    def flush(self) -> pl.DataFrame:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(_SCHEMA)
        raw = pl.DataFrame(
            [
                pl.Series(name, column, dtype=kind)
                for (name, kind), column in zip(_SCHEMA.items(), columns, strict=True)
            ]
        )
        self.rows = []
        return self._stage(raw)

    def lines(self, path: Path, name: str) -> Iterator[None]:
        """Take an NDJSON file, line by line."""
        place = 0
        try:
            with _open(path) as file:
                for place, line in enumerate(file, start=1):
                    kind = _TYPE.match(line)
                    if kind is not None and self._is_other(kind[1].decode()):
                        self._reject(rejection.NOT_READ, kind=kind[1].decode())
                    elif not line.isspace():
                        self._parse(line, name, place)
                    yield
        except _BROKEN:
            self._reject(rejection.BAD_FILE, source=name, place=place)

    def bundle(self, path: Path, name: str) -> Iterator[None]:
        """Take a file that holds one bundle, or one resource."""
        try:
            with _open(path) as file:
                content = file.read()
        except _BROKEN:
            self._reject(rejection.BAD_FILE, source=name)
            return
        self._parse(content, name, 1)
        yield

    def _is_other(self, kind: str) -> bool:
        return kind not in self._resources.readers and kind != "Bundle"

    def _parse(self, content: bytes, name: str, place: int) -> None:
        try:
            node = orjson.loads(content)
        except orjson.JSONDecodeError:
            self._reject(rejection.BAD_JSON, source=name, place=place)
            return
        self._take(node, name, place)

    def _take(self, node: Any, name: str, place: int) -> None:
        kind = node.get("resourceType") if isinstance(node, dict) else None
        if not isinstance(kind, str):
            self._reject(rejection.MALFORMED, source=name, place=place)
        elif kind == "Bundle":
            self._take_bundle(node, name, place)
        elif self._is_other(kind):
            self._reject(rejection.NOT_READ, kind=kind)
        else:
            try:
                found, faults = self._resources.rows(kind, node)
            except NoEventError as fault:
                found, faults = [], [str(fault)]
            for reason in faults:
                self._reject(reason, source=name, kind=kind, place=place)
            self.rows += [(*row, name, place) for row in found]

    def _take_bundle(self, bundle: dict[str, Any], name: str, place: int) -> None:
        entries = bundle.get("entry") or []
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            self._reject(rejection.MALFORMED, source=name, kind="Bundle", place=place)
            return
        outer = self._resources.aliases
        self._resources.aliases = outer | _aliases(entries)
        for number, entry in enumerate(entries, start=1):
            self._take(entry.get("resource"), name, number)
        self._resources.aliases = outer


def _aliases(entries: list[dict[str, Any]]) -> dict[str, str]:
    """Ids of resources by a `fullUrl` that names them otherwise; what has no id gets one from it."""
    found = {}
    for entry in entries:
        url, resource = entry.get("fullUrl"), entry.get("resource")
        if isinstance(url, str) and isinstance(resource, dict):
            key = resource.setdefault("id", last(url))
            if isinstance(key, str) and not url.endswith(key):
                found[url] = key
    return found


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")
