"""Copies and near copies: the same content, and pictures that look alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as Pillow

from galenic.data.values import Image, Value, Volume

Array = np.ndarray[Any, np.dtype[Any]]
HASH_SIDE = 8
NEAR_BITS = 3
BANDS = 4


def content_hash(value: Value | str) -> str:
    """Digest of what a sample holds, whatever file it came in."""
    if isinstance(value, str):
        return hashlib.sha256(" ".join(value.lower().split()).encode()).hexdigest()
    array = _array(value)
    head = f"{array.shape}{array.dtype}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _array(value: Any) -> Array:
    for name in ("pixels", "voxels", "samples"):
        if hasattr(value, name):
            found: Array = getattr(value, name)
            return found
    return np.asarray(value)


def difference_hash(value: Image | Volume) -> int:
    """64 bits: is each cell of a 9 x 8 miniature brighter than its right neighbour? (dHash)"""
    pixels = (
        value.pixels if isinstance(value, Image) else value.voxels[:, value.voxels.shape[1] // 2]
    )
    grey = pixels.astype(np.float32).mean(axis=0)
    spread = max(float(grey.max() - grey.min()), 1e-6)
    small = Pillow.fromarray(((grey - grey.min()) / spread * 255).astype(np.uint8)).resize(
        (HASH_SIDE + 1, HASH_SIDE), Pillow.Resampling.BOX
    )
    cells = np.asarray(small, dtype=np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_across(
    look: Sequence[tuple[int, int]], part: Array, told: Sequence[int] = ()
) -> tuple[int, Array]:
    """Pairs of pictures that look nearly the same and lie in two parts: how many, and their rows.

    They are counted by hash, not one by one: thousands of blank tiles share one.

    Args:
        look: Row and hash of each picture.
        part: Of each row; -1 for none.
        told: Rows that are known already; two of them make no pair.
    """
    rows = np.array([row for row, _ in look], dtype=int)
    bits = np.array([bits for _, bits in look], dtype=np.uint64)
    placed = part[rows] >= 0
    rows, own = rows[placed], part[rows[placed]]
    hashes, group = np.unique(bits[placed], return_inverse=True)
    if not len(rows):
        return 0, rows
    old = np.isin(rows, list(told))
    # How many there are of each hash in each part: all, and those that are not told.
    counts = np.zeros((len(hashes), 2, int(own.max()) + 1), dtype=int)
    np.add.at(counts[:, 0], (group, own), 1)
    np.add.at(counts[:, 1], (group[~old], own[~old]), 1)
    near = counts.copy()
    one, other = near_pairs(hashes).T
    for at, to in ((one, other), (other, one)):
        np.add.at(near, at, counts[to])
    elsewhere = near.sum(axis=-1, keepdims=True) - near
    partners = elsewhere[group, old.astype(int), own]
    return int(partners.sum()) // 2, rows[partners > 0]


def near_pairs(hashes: Array, most_bits: int = NEAR_BITS) -> Array:
    """Pairs [n, 2] of places whose 64-bit hashes differ in at most `most_bits` (< 4) bits.

    Two hashes that differ in fewer bits than there are bands agree in at least one band, so
    only places that share a band are compared: no two hashes should be equal.
    """
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        part = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        edges = np.flatnonzero(np.r_[True, np.diff(part[order]) != 0, True])
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            places = order[start:end]
            for at, first in enumerate(places[:-1]):
                rest = places[at + 1 :]
                bits = np.bitwise_count(hashes[first] ^ hashes[rest])
                for second in rest[bits <= most_bits]:
                    a, b = sorted((int(first), int(second)))
                    found.add((a, b))
    return np.array(sorted(found), dtype=int).reshape(-1, 2)
