"""A content-keyed, memory-mapped store of arrays: frozen work is done once.

A bank is a folder of segments. A segment is written whole under a temporary name and then
renamed, so a killed process leaves no half segment, and several processes may add to one bank
at a time. Reading maps the files; nothing is loaded that is not asked for.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.files import atomic_folder

Array = np.ndarray[Any, np.dtype[Any]]


class ArrayBank:
    """Arrays of one dtype by content key.

    Args:
        folder: Where the segments lie; made on the first write. Its name should hold
            everything that the arrays depend on besides their keys.
        dtype: Element type of every array.
    """

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self.folder = folder
        self.dtype = np.dtype(dtype)
        self._places: dict[str, tuple[Array, int, tuple[int, ...]]] = {}
        self._seen: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take up the segments that were added since."""
        for index in sorted(self.folder.glob("*/index.json")):
            if index.parent.name in self._seen or index.parent.name.startswith("."):
                continue
            values = np.load(index.parent / "values.npy", mmap_mode="r")
            for key, start, shape in json.loads(index.read_text(encoding="utf-8")):
                self._places[key] = (values, start, tuple(shape))
            self._seen.add(index.parent.name)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Array:
        """The array under `key`, as a read-only view of the mapped file."""
        values, start, shape = self._places[key]
        return values[start : start + int(np.prod(shape, dtype=np.int64))].reshape(shape)

    def add(self, arrays: Mapping[str, Array]) -> None:
        """Write `arrays` as one segment; keys that are there already are left alone."""
        fresh = {key: array for key, array in arrays.items() if key not in self._places}
        if not fresh:
            return
        flat = [np.asarray(array, self.dtype).ravel() for array in fresh.values()]
        starts = np.cumsum([0, *(len(values) for values in flat)])
        index = [
            [key, int(start), list(array.shape)]
            for (key, array), start in zip(fresh.items(), starts, strict=False)
        ]
        with atomic_folder(self.folder / uuid.uuid4().hex) as segment:
            np.save(segment / "values.npy", np.concatenate(flat))
            (segment / "index.json").write_text(json.dumps(index), encoding="utf-8")
        self.refresh()
