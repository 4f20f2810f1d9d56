"""What a network wants to be fed, in plain numbers.

The data floor turns a sample into such an array, the models floor says which one; neither
has to know the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
Modality = Literal["image", "volume", "ecg", "audio", "text", "table"]


@dataclass(frozen=True)
class EcgSpec:
    """What is done to a tracing before a network reads it.

    Attributes:
        leads: The leads, by name, in the order of the network; () for those of the file.
        preset: Preparation of the network's authors, a name of :mod:`galenic.data.ecg`; None for
            none.
        faults: A lead that is missing, flat or clipped: `refuse` the record, or `mask` the lead
            with zeros.
        mains_hz: Frequency of the power line, for the preset's notch.
    """

    leads: tuple[str, ...] = ()
    preset: str | None = None
    faults: Literal["refuse", "mask"] = "refuse"
    mains_hz: float = 50.0


@dataclass(frozen=True)
class InputSpec:
    """One input of a network.

    Attributes:
        key: Name of the argument of the network (`pixel_values`, `input_ids`, ...).
        form: `image` [C,H,W], `volume` [C,D,H,W], `signal` [C,T], `spectrogram` [T,F],
            `tokens` (integer ids) or `table` [F].
        channels: Number of channels C, or of features F for a table.
        size: Spatial size: (H, W), (D, H, W) or (T,); None where the network takes any.
        mean: Per channel mean, on intensities scaled to 0..1, or on log mel energies; None for no
            normalisation.
        std: Per channel standard deviation, as `mean`.
        rate_hz: Sampling rate of signals.
        max_length: Longest token sequence.
        ecg: Of tracings; None where they are taken as the file has them.
    """

    key: str
    form: Literal["image", "volume", "signal", "spectrogram", "tokens", "table"]
    channels: int = 3
    size: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    rate_hz: float | None = None
    max_length: int | None = None
    ecg: EcgSpec | None = None
