"""WAV and FLAC sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from galenic.core.errors import DataError, MissingExtraError
from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.values import Header, Signal

MODALITY = "audio"
SUFFIXES = (".wav", ".flac")


def read(path: Path) -> Signal:
    """Channels [C, T] between -1 and 1.

    Raises:
        DataError: If the file is broken or empty.
    """
    soundfile = _soundfile()
    with guarded(path, "sound"):
        facts = soundfile.info(str(path))
        require_size((facts.channels, facts.frames), "sound")
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
        if not len(samples):
            raise DataError("The sound is empty.")
        return Signal(require_finite(np.ascontiguousarray(samples.T), "sound"), float(rate))


def header(path: Path) -> Header:
    """Channels and samples."""
    with guarded(path, "sound"):
        facts = _soundfile().info(str(path))
        return Header((facts.channels, facts.frames))


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError:
        raise MissingExtraError.of("soundfile", "signals") from None
    return soundfile
