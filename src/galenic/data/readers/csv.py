"""A tracing as a table: a column of times, and one a lead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.errors import DataError
from galenic.data.readers._guard import MOST_ELEMENTS, guarded, require_finite, require_size
from galenic.data.readers._units import in_millivolts
from galenic.data.values import Signal

Array = np.ndarray[Any, np.dtype[Any]]
MODALITY = "ecg"
# Most CSV files are no tracings: the header decides.
SUFFIXES = ()
# Seconds a unit of the column.
TIMES = {"time": 1.0, "time_s": 1.0, "t": 1.0, "seconds": 1.0, "time_ms": 1e-3, "ms": 1e-3}
# `I`, `I (mV)`, `I [uV]`.
COLUMN = re.compile(r"\s*\"?(.*?)\s*(?:[(\[]\s*(\S+?)\s*[)\]])?\"?\s*")
LONGEST_HEADER = 4096
# Share of a step by which times may be off an even grid: they are rounded.
UNEVEN = 0.5


def takes(path: Path) -> bool:
    """Whether a `.csv` has a column of times (`time`, `time_s`, `time_ms`, ...)."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return _clock(_columns(file.readline(LONGEST_HEADER))) is not None


def read(path: Path) -> Signal:
    """Leads [C, T] in mV where the header gives volts, as in `I (uV)`; the rate from the times.

    Raises:
        DataError: If the times are not even, or a cell is no number.
    """
    with guarded(path, "CSV tracing"):
        if path.stat().st_size > MOST_ELEMENTS:
            raise MemoryError
        with path.open(encoding="utf-8-sig") as file:
            columns = _columns(file.readline(LONGEST_HEADER))
            table = np.loadtxt(file, delimiter=",", ndmin=2, dtype=np.float64)
        require_size((len(columns) - 1, len(table) - 1), "CSV tracing")
        clock = _clock(columns)
        assert clock is not None
        rate = _rate(table[:, clock] * TIMES[columns[clock][0].lower()])
        leads = [column for place, column in enumerate(columns) if place != clock]
        samples = np.delete(table, clock, axis=1).T.astype(np.float32, order="C")
        require_finite(samples, "CSV tracing")
        samples = in_millivolts(samples, [unit for _, unit in leads])
        return Signal(samples, rate, tuple(name for name, _ in leads))


def _columns(line: str) -> list[tuple[str, str]]:
    """Name and unit of each column."""
    parts = (COLUMN.fullmatch(cell) for cell in line.rstrip("\r\n").split(","))
    return [(part[1], part[2] or "") for part in parts if part is not None]


def _clock(columns: list[tuple[str, str]]) -> int | None:
    """Place of the column of times."""
    return next((place for place, (name, _) in enumerate(columns) if name.lower() in TIMES), None)


def _rate(seconds: Array) -> float:
    step = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    grid = seconds[0] + step * np.arange(len(seconds))
    if not step > 0 or not np.all(np.abs(seconds - grid) < UNEVEN * step):
        raise DataError(
            "The times of the table are not even.", expected="rows at one sampling rate, in order"
        )
    return float(np.round(1 / step, 3))
