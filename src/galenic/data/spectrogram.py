"""Signals as pictures, for networks that read pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.signal import resample_poly, stft

Array = np.ndarray[Any, np.dtype[Any]]
WINDOW_S = {"ecg": 0.5, "audio": 0.064}
FLOOR = 1e-6


def resample(samples: Array, rate_hz: float, wanted_hz: float) -> Array:
    """Samples [C, T] at another rate, by a polyphase filter."""
    if rate_hz == wanted_hz:
        return samples
    ratio = wanted_hz / rate_hz
    up, down = _fraction(ratio)
    return resample_poly(samples, up, down, axis=-1).astype(np.float32)


def _fraction(ratio: float) -> tuple[int, int]:
    from fractions import Fraction

    found = Fraction(ratio).limit_denominator(1000)
    return found.numerator, found.denominator


def log_spectrogram(samples: Array, rate_hz: float, modality: str) -> Array:
    """Log power [C, F, T'] of samples [C, T], low frequencies at the bottom, scaled to 0..1.

    The scale is set by the 1st and 99th percentile of the whole recording, so that the balance
    between leads is kept.
    """
    window = max(int(rate_hz * WINDOW_S[modality]), 8)
    window = min(window, samples.shape[-1])
    _, _, bins = stft(samples, rate_hz, nperseg=window, noverlap=window * 3 // 4)
    power = np.log(np.abs(bins) ** 2 + FLOOR)
    low, high = np.percentile(power, [1, 99])
    scaled = np.clip((power - low) / max(high - low, 1e-6), 0, 1)
    return np.ascontiguousarray(scaled[:, ::-1], dtype=np.float32)


def log_mel(samples: Array, rate_hz: float, frames: int, bins: int) -> Array:
    """Log mel energies [frames, bins] of the mean channel, as AST has them.

    25 ms Hann windows every 10 ms; cut or padded to `frames`; mean 0, standard deviation 0.5.
    """
    mono = samples.mean(axis=0)
    window, hop = int(rate_hz * 0.025), int(rate_hz * 0.010)
    _, _, spectrum = stft(mono, rate_hz, nperseg=window, noverlap=window - hop, nfft=512)
    energies = _mel_bank(bins, 512, rate_hz) @ np.abs(spectrum) ** 2
    table = np.log(energies + FLOOR).T[:frames]
    table = (table - table.mean()) / (2 * table.std() + 1e-6)
    padded = np.zeros((frames, bins), np.float32)
    padded[: len(table)] = table
    return padded


def _mel_bank(bins: int, size: int, rate_hz: float) -> Array:
    def mel(hz: Array | float) -> Array | float:
        return 1127 * np.log1p(np.asarray(hz) / 700)

    edges = np.linspace(float(mel(20.0)), float(mel(rate_hz / 2)), bins + 2)
    places = np.asarray(mel(np.linspace(0, rate_hz / 2, size // 2 + 1)))
    up = (places - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - places) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(up, down), 0, None)
