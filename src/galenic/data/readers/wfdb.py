"""WFDB records: an ECG as PhysioNet keeps it."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.errors import DataError, MissingExtraError
from galenic.data.readers import _wfdb16
from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.readers._units import in_millivolts
from galenic.data.values import Header, Signal

MODALITY = "ecg"
SUFFIXES = (".hea", ".dat")
# Name of a segment, or of a file of samples, that is a gap.
NOTHING = "~"


def takes(path: Path) -> bool:
    """Whether a name without suffix is a record, as PhysioNet's tables list them."""
    return path.with_name(f"{path.name}.hea").is_file()


def parts(path: Path) -> list[Path]:
    """The header and the files of samples that it names, in turn of each of its segments."""
    header = _record(path, ".hea")
    with guarded(path, "WFDB record"):
        if not header.is_file():
            raise DataError(f"The header '{header.name}' is missing.")
        text = header.read_text(encoding="utf-8", errors="replace")
        lines = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
        (record, *_), *rest = (words for words in lines if words)
        named = sorted({words[0] for words in rest} - {NOTHING})
        found = [header.parent / name for name in named]
        if "/" in record:
            segments = (parts(segment.with_name(f"{segment.name}.hea")) for segment in found)
            return [header, *chain.from_iterable(segments)]
        return [header, *(file for file in found if file.is_file())]


def read(path: Path) -> Signal:
    """Leads [C, T] in mV where the header gives volts of any prefix.

    Raises:
        DataError: If header or samples are missing or broken.
    """
    record = _record(path)
    with guarded(path, "WFDB record"):
        if not _record(path, ".hea").is_file():
            raise DataError(f"The header '{record.name}.hea' is missing.")
        plain = _wfdb16.plain(_record(path, ".hea"))
        if plain is None:
            return _read_any(record)
        require_size((len(plain.leads), plain.length), "WFDB record")
        values = np.ascontiguousarray(_wfdb16.samples(plain), dtype=np.float32)
        require_finite(values, "record")
        return Signal(in_millivolts(values, plain.units), plain.rate_hz, plain.leads)


def _read_any(record: Path) -> Signal:
    wfdb = _wfdb()
    facts = wfdb.rdheader(str(record))
    require_size((facts.n_sig, facts.sig_len), "WFDB record")
    samples, fields = wfdb.rdsamp(str(record))
    values = np.ascontiguousarray(samples.T, dtype=np.float32)
    require_finite(values, "record")
    names = tuple(str(name) for name in fields["sig_name"])
    return Signal(in_millivolts(values, fields["units"]), float(fields["fs"]), names)


def header(path: Path) -> Header:
    """Leads and samples."""
    with guarded(path, "WFDB record"):
        plain = _wfdb16.plain(_record(path, ".hea"))
        if plain is not None:
            return Header((len(plain.leads), plain.length))
        facts = _wfdb().rdheader(str(_record(path)))
        return Header((facts.n_sig, facts.sig_len))


def _record(path: Path, suffix: str = "") -> Path:
    """The record's name, which may hold dots, with another suffix."""
    name = path.stem if path.suffix in SUFFIXES else path.name
    return path.with_name(f"{name}{suffix}")


def _wfdb() -> Any:
    try:
        import wfdb
    except ImportError:
        raise MissingExtraError.of("wfdb", "signals") from None
    return wfdb
