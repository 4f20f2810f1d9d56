"""EDF recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from galenic.core.errors import DataError, MissingExtraError
from galenic.data.readers._guard import guarded, require_finite, require_size
from galenic.data.readers._units import in_millivolts
from galenic.data.values import Signal

MODALITY = "ecg"
SUFFIXES = (".edf",)


def read(path: Path) -> Signal:
    """Channels [C, T], volts of any prefix in mV; all must share one sampling rate.

    Raises:
        DataError: If the file is broken or its channels differ in rate.
    """
    try:
        import edfio
    except ImportError:
        raise MissingExtraError.of("edfio", "signals") from None
    with guarded(path, "EDF recording"):
        opened = edfio.read_edf(path)
        rates = {signal.sampling_frequency for signal in opened.signals}
        if len(rates) != 1:
            raise DataError(
                f"The channels have {len(rates)} sampling rates.", expected="one for all channels"
            )
        lengths = {len(signal.data) for signal in opened.signals}
        require_size((len(opened.signals), max(lengths)), "EDF recording")
        samples = np.stack([signal.data for signal in opened.signals]).astype(np.float32)
        names = tuple(signal.label for signal in opened.signals)
        require_finite(samples, "recording")
        samples = in_millivolts(samples, [s.physical_dimension for s in opened.signals])
        return Signal(samples, float(rates.pop()), names)
