"""One pass over the files of a cohort, and what it gathers for `galenic check`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from galenic.core.errors import GalenicError
from galenic.core.progress import track
from galenic.data.cohort import Cohort
from galenic.data.duplicates import content_hash, difference_hash
from galenic.data.leads import oddities
from galenic.data.values import Image, Signal, Volume


@dataclass
class Seen:
    """What was gathered.

    Attributes:
        broken: Row and reason of what could not be read.
        content: Rows by the digest of what they hold.
        look: Row and perceptual hash of each picture.
        spacing: Row and distances in mm.
        shapes: How often each size occurs.
        odd: Rows by what is worth a look in their tracings.
    """

    broken: list[tuple[int, str]] = field(default_factory=list)
    content: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    look: list[tuple[int, int]] = field(default_factory=list)
    spacing: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)
    shapes: dict[tuple[int, ...], int] = field(default_factory=lambda: defaultdict(int))
    odd: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


def everything(cohort: Cohort) -> Seen:
    """Decode every file."""
    seen = Seen()
    if set(cohort.inputs.values()) == {"table"}:
        hashed = cohort.features().apply(lambda row: repr(row.to_list()), axis=1)
        for row, text in enumerate(hashed):
            seen.content[content_hash(text)].append(row)
        return seen
    for row in track(range(len(cohort)), "reading every file"):
        try:
            values = cohort.read(row)
        except GalenicError as error:
            seen.broken.append((row, error.found))
            continue
        for column, value in values.items():
            if cohort.inputs[column] == "ecg" and isinstance(value, Signal):
                for text in oddities(value):
                    seen.odd[text].append(row)
            seen.content[content_hash(value)].append(row)
            if isinstance(value, Image | Volume):
                seen.look.append((row, difference_hash(value)))
                seen.shapes[(value.pixels if isinstance(value, Image) else value.voxels).shape] += 1
                if value.spacing_mm is not None:
                    seen.spacing.append((row, value.spacing_mm))
    return seen


def headers(cohort: Cohort) -> Seen:
    """Read the header of every file, and no content."""
    seen = Seen()
    for row in track(range(len(cohort)), "reading every header"):
        try:
            found = cohort.header(row)
        except GalenicError as error:
            seen.broken.append((row, error.found))
            continue
        for header in found.values():
            if header is None:
                continue
            seen.shapes[header.shape] += 1
            if header.spacing_mm is not None:
                seen.spacing.append((row, header.spacing_mm))
    return seen
