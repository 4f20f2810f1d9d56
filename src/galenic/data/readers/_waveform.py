"""The waveform of a DICOM file."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from galenic.core.errors import DataError
from galenic.data.readers._guard import require_finite, require_size
from galenic.data.readers._units import in_millivolts
from galenic.data.values import Signal


def waveform(data: Any) -> Signal:
    """Channels [C, T] of the first multiplex group that was recorded, not derived.

    Sensitivity, its correction and the baseline are applied; volts of any prefix become mV.

    Raises:
        DataError: If there is no group, or its samples are not finite.
    """
    groups = list(data.WaveformSequence)
    if not groups:
        raise DataError("The DICOM waveform has no group of channels.")
    recorded = [
        place for place, g in enumerate(groups) if g.get("WaveformOriginality") != "DERIVED"
    ]
    place = recorded[0] if recorded else 0
    group = groups[place]
    shape = (int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples))
    require_size(shape, "DICOM waveform")
    samples = np.ascontiguousarray(data.waveform_array(place).T, dtype=np.float32)
    channels = group.ChannelDefinitionSequence
    samples = in_millivolts(samples, [_unit(channel) for channel in channels])
    names = tuple(_name(channel) for channel in channels)
    rate = float(group.SamplingFrequency)
    return Signal(require_finite(samples, "DICOM waveform"), rate, names)


def _unit(channel: Any) -> str:
    units = channel.get("ChannelSensitivityUnitsSequence")
    return str(units[0].CodeValue) if units else ""


def _name(channel: Any) -> str:
    """`I`, `aVR`, `V1`: the coded name `Lead I (Einthoven)` without what is common to all."""
    source = channel.get("ChannelSourceSequence")
    text = str(source[0].get("CodeMeaning", "")) if source else str(channel.get("ChannelLabel", ""))
    return re.sub(r"^Lead |\s*\(.*\)$", "", text)
