"""The commonest WFDB record, one file of 16-bit samples, without the general parser.

`wfdb` takes milliseconds to parse a header; here it is a split of each line. Whatever is not
plain (several segments or files, other formats, skews, several samples a frame) is left to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
RECORD = re.compile(r"[^\s/]+ (\d+) (\d+(?:\.\d+)?) (\d+)(?: .*)?")
# File, format, gain(baseline)/unit, resolution, zero, first value, checksum, block, lead.
SIGNAL = re.compile(
    r"([^\s/\\]+) 16 (\d+(?:\.\d+)?)(?:\((-?\d+)\))?(?:/(\S+))? \d+ (-?\d+) -?\d+ -?\d+ \d+ (\S.*)"
)
MISSING = -32768


@dataclass(frozen=True)
class Plain:
    """What the header of a plain record says.

    Attributes:
        file: Of the samples.
        rate_hz: Samples a second.
        length: Samples of each lead.
        leads: Names.
        gain: Steps a unit, of each lead.
        baseline: Step of zero, of each lead.
        units: Of each lead.
    """

    file: Path
    rate_hz: float
    length: int
    leads: tuple[str, ...]
    gain: tuple[float, ...]
    baseline: tuple[int, ...]
    units: tuple[str, ...]


def plain(header: Path) -> Plain | None:
    """What a header says, or None where the record is not plain."""
    text = header.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    record = RECORD.fullmatch(lines[0]) if lines else None
    signals = [found for line in lines[1:] if (found := SIGNAL.fullmatch(line))]
    if record is None or not signals or not len(signals) == len(lines) - 1 == int(record[1]):
        return None
    if len({found[1] for found in signals}) > 1 or min(float(found[2]) for found in signals) <= 0:
        return None
    return Plain(
        header.parent / signals[0][1],
        float(record[2]),
        int(record[3]),
        tuple(found[6] for found in signals),
        tuple(float(found[2]) for found in signals),
        tuple(int(found[5] if found[3] is None else found[3]) for found in signals),
        tuple(found[4] or "mV" for found in signals),
    )


def samples(facts: Plain) -> Array:
    """Leads [C, T] in their units, NaN where a sample is missing.

    Raises:
        ValueError: If the file is shorter than the header says.
    """
    count = len(facts.leads) * facts.length
    steps = np.fromfile(facts.file, "<i2", count=count).reshape(facts.length, len(facts.leads))
    values = steps.T.astype(np.float64)
    values[steps.T == MISSING] = np.nan
    values -= np.array(facts.baseline)[:, None]
    values /= np.array(facts.gain)[:, None]
    return values
