"""Signals as pictures, for networks that read pictures."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from scipy.signal import resample_poly, stft

Array = np.ndarray[Any, np.dtype[Any]]
WINDOW_S = {"ecg": 0.5, "audio": 0.064}
FLOOR = 1e-6
# Kaldi's: the smallest step of float32 at one.
MEL_FLOOR = float(np.finfo(np.float32).eps)


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
    """Log mel energies [frames, bins] of the mean channel, as Kaldi and AST have them.

    25 ms Hann windows every 10 ms, without offset and with pre-emphasis; cut, or padded with
    zeros, to `frames`. Mean and spread of the training set are the network's affair.
    """
    from transformers.audio_utils import spectrogram, window_function

    mono = samples.mean(axis=0)
    window, hop = int(rate_hz * 0.025), int(rate_hz * 0.010)
    if len(mono) < window:
        mono = np.pad(mono, (0, window - len(mono)))
    size = 1 << (window - 1).bit_length()
    energies = spectrogram(
        mono,
        window_function(window, "hann", periodic=False),
        frame_length=window,
        hop_length=hop,
        fft_length=size,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=_mel_bank(bins, size, rate_hz),
        log_mel="log",
        mel_floor=MEL_FLOOR,
        remove_dc_offset=True,
    )
    table = energies.T[:frames]
    padded = np.zeros((frames, bins), np.float32)
    padded[: len(table)] = table
    return padded


@cache
def _mel_bank(bins: int, size: int, rate_hz: float) -> Array:
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():
        # AST's 128 bins leave the lowest filter empty; it was trained so.
        warnings.filterwarnings("ignore", message="At least one mel filter")
        return mel_filter_bank(
            num_frequency_bins=size // 2 + 1,
            num_mel_filters=bins,
            min_frequency=20,
            max_frequency=rate_hz / 2,
            sampling_rate=rate_hz,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
