"""Preparation of tracings as the authors of a network had it: one preset each, all of it here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import median_filter
from scipy.signal import butter, filtfilt, iirnotch, sosfiltfilt

from galenic.core.errors import DataError
from galenic.core.inputs import InputSpec
from galenic.data.leads import choose, require_length
from galenic.data.values import Signal

Array = np.ndarray[Any, np.dtype[Any]]
NOTCH_Q = 30
BAND_HZ = (0.67, 40.0)
BAND_ORDER = 4
# What scipy's filtfilt adds on either side for the nine coefficients of the band-pass.
BAND_PADDING = 27
MEDIAN_S = 0.4


def prepare(signal: Signal, spec: InputSpec) -> Array:
    """A tracing as a network of tracings wants it.

    Args:
        signal: As the reader gives it; left as it is.
        spec: With `ecg`; its preset cleans.

    Returns:
        float32 [C, T]: leads in the order of the network, mean 0 and spread 1 over all good leads
        together; zeros in masked leads, and on both sides of a short record.

    Raises:
        DataError: If the record is too short or too coarse, or a lead of it cannot be used.
    """
    assert spec.ecg is not None and spec.ecg.preset is not None and spec.rate_hz is not None
    require_length(signal)
    samples, good = choose(signal, spec.ecg)
    if len(samples) != spec.channels:
        raise DataError(
            f"The tracing has {len(samples)} leads, the network reads {spec.channels}.",
            expected=f"one of: {', '.join(signal.channels)}",
            next_step=f"Name {'it' if spec.channels == 1 else 'them'}: input.ecg.leads=[...]",
        )
    cleaned = PRESETS[spec.ecg.preset](samples[good], signal.rate_hz, spec.ecg.mains_hz)
    cleaned = at_rate(cleaned, signal.rate_hz, spec.rate_hz)
    length = cleaned.shape[-1] if spec.size is None else spec.size[0]
    start = max(cleaned.shape[-1] - length, 0) // 2
    cleaned = cleaned[:, start : start + length]
    before = (length - cleaned.shape[-1]) // 2
    result = np.zeros((len(samples), length), np.float32)
    # One mean and spread for all leads: what they are to each other is kept.
    scaled = (cleaned - cleaned.mean()) / (cleaned.std() + 1e-8)
    result[good, before : before + cleaned.shape[-1]] = scaled
    return result


def ecgfounder(samples: Array, rate_hz: float, mains_hz: float = 50.0) -> Array:
    """Without mains, drift and baseline, as ECGFounder has it (`util.filter_bandpass`).

    A notch of quality 30, a Butterworth band-pass of order 4 from 0.67 to 40 Hz, both forth and
    back, then less the running median of 0.4 s (201 samples at 500 Hz).

    Args:
        samples: [C, T].
        rate_hz: Their rate.
        mains_hz: Of the power line; left out where the record cannot hold it.

    Returns:
        float64 [C, T] at the same rate.

    Raises:
        DataError: If the rate is too low for the band.
    """
    if rate_hz <= 2 * BAND_HZ[1]:
        raise DataError(
            f"The tracing was sampled at {rate_hz:g} Hz.",
            expected=f"more than {2 * BAND_HZ[1]:g} Hz, for what is below {BAND_HZ[1]:g} Hz",
            next_step="Check the rate in the file's header.",
        )
    values = samples.astype(np.float64)
    if mains_hz < rate_hz / 2:
        values = filtfilt(*iirnotch(mains_hz, NOTCH_Q, rate_hz), values, axis=-1)
    # In sections: as one quotient, which is what was published, it is unstable from 2 kHz on.
    sections = butter(BAND_ORDER, BAND_HZ, "bandpass", fs=rate_hz, output="sos")
    values = sosfiltfilt(sections, values, axis=-1, padlen=BAND_PADDING)
    window = int(MEDIAN_S * rate_hz) + 1
    window += window % 2 == 0
    # A row at a time: scipy's filter of one axis is twenty times faster than that of two.
    baseline = [median_filter(lead, window, mode="constant") for lead in values]
    return values - np.stack(baseline)


def at_rate(samples: Array, rate_hz: float, wanted_hz: float) -> Array:
    """Samples [C, T] at another rate, in straight lines between the old ones.

    By rate, and not to a length: five seconds stay five seconds.
    """
    if rate_hz == wanted_hz:
        return samples
    old = np.arange(samples.shape[-1]) / rate_hz
    new = np.arange(round(samples.shape[-1] * wanted_hz / rate_hz)) / wanted_hz
    return np.stack([np.interp(new, old, lead) for lead in samples])


PRESETS: dict[str, Callable[[Array, float, float], Array]] = {"ecgfounder": ecgfounder}
