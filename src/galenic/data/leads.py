"""The leads of a tracing: their names, and what can be wrong with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from galenic.core.errors import DataError
from galenic.core.inputs import STANDARD_LEADS, EcgSpec
from galenic.data.values import Signal

Array = np.ndarray[Any, np.dtype[Any]]
LIMB_LEADS = STANDARD_LEADS[:6]
# What files put around the name: `Lead I (Einthoven)`, `MDC_ECG_LEAD_AVR`, `ECG V1`, `II-raw`.
AROUND = re.compile(r"^(mdc_ecg_lead_|ecg[ _]|lead[ _])+|\s*\(.*\)$|\s+")
SHORTEST_S = 1.0
# A QRS complex has a pointed top; an amplifier at its limit stays there.
CLIPPED_S = 0.1
# Leads of one heart differ in amplitude by up to about 30; millivolts and microvolts by 1000.
UNIT_GAP = 100.0
# Share of the largest limb lead that II - I - III may reach; rounding and filters reach 0.01.
EINTHOVEN = 0.3


def canonical(name: str) -> str:
    """A lead's name as all spellings of it have it: `AVR` and `Lead aVR` are `avr`."""
    return AROUND.sub("", name.strip().casefold())


def choose(signal: Signal, spec: EcgSpec) -> tuple[Array, Array]:
    """The wanted leads in the wanted order, whatever order the file has.

    Args:
        signal: As the reader gives it.
        spec: Which leads, and what to do about those that are missing, flat or clipped.

    Returns:
        Samples [C, T], zeros where a lead is masked, and which leads are good [C].

    Raises:
        DataError: If a name occurs twice, leads differ in their unit, no lead is good, or one is
            not good and `spec.faults` is `refuse`.
    """
    channels = signal.channels or tuple(f"#{place}" for place in range(len(signal.samples)))
    names = [canonical(name) for name in channels]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise DataError(f"The tracing has several leads '{double}'.", expected="each name once")
    wanted = spec.leads or channels
    places = [names.index(name) if name in names else -1 for name in map(canonical, wanted)]
    samples = np.where(
        np.array(places)[:, None] >= 0, signal.samples[places], np.float32(0)
    ).astype(np.float32, copy=False)
    faults = {
        lead: "missing" if place < 0 else fault
        for lead, place, fault in zip(
            wanted, places, faults_of(samples, signal.rate_hz), strict=True
        )
    }
    faults = {lead: fault for lead, fault in faults.items() if fault}
    good = np.array([lead not in faults for lead in wanted])
    if faults and (spec.faults == "refuse" or not good.any()):
        listed = ", ".join(f"{lead} is {fault}" for lead, fault in faults.items())
        raise DataError(
            f"Leads of the tracing cannot be used: {listed}.",
            expected=f"{', '.join(wanted)}; the file has {', '.join(channels)}",
            next_step="Choose leads: input.ecg.leads=[I]; or set these to zero: "
            "input.ecg.faults=mask",
        )
    require_one_unit(samples[good], [lead for lead in wanted if lead not in faults])
    return np.where(good[:, None], samples, np.float32(0)), good


def faults_of(samples: Array, rate_hz: float) -> list[str]:
    """For each lead [C, T]: `flat`, `clipped`, or '' where it is neither."""
    longest = max(int(CLIPPED_S * rate_hz), 2)
    found = []
    for lead in samples:
        low, high = lead.min(), lead.max()
        if low == high:
            found.append("flat")
        else:
            held = max(_longest_run(lead == low), _longest_run(lead == high))
            found.append("clipped" if held >= longest else "")
    return found


def draw(signal: Signal, rng: np.random.Generator) -> int | None:
    """Place of one lead, drawn among those that are neither flat nor clipped."""
    good = [i for i, fault in enumerate(faults_of(signal.samples, signal.rate_hz)) if not fault]
    return int(rng.choice(good)) if good else None


def _longest_run(where: Array) -> int:
    edges = np.flatnonzero(np.diff(where, prepend=False, append=False))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def require_one_unit(samples: Array, leads: Sequence[str]) -> None:
    """Check that leads [C, T] are not in different units.

    Raises:
        DataError: If amplitudes fall into two groups that are too far from each other.
    """
    order, steps = _steps(samples)
    if steps.max(initial=0) > UNIT_GAP:
        first = int(steps.argmax()) + 1
        small = ", ".join(leads[place] for place in order[:first])
        raise DataError(
            f"The amplitude of {small} is {steps.max():.0f} times below that of the other leads.",
            expected="all leads in one unit, mV or uV",
            next_step="Correct the unit in the file's header.",
        )


def _steps(samples: Array) -> tuple[Array, Array]:
    """Leads by amplitude, and how many times each but the first is above the one before."""
    spread = samples.std(axis=1)
    order = np.argsort(spread)
    return order, spread[order][1:] / np.maximum(spread[order][:-1], 1e-12)


def require_length(signal: Signal) -> None:
    """Check that there is something to look at.

    Raises:
        DataError: If the tracing is shorter than a second.
    """
    seconds = signal.samples.shape[-1] / signal.rate_hz
    if seconds < SHORTEST_S:
        raise DataError(
            f"The tracing lasts {seconds:.2f} s at {signal.rate_hz:g} Hz.",
            expected=f"at least {SHORTEST_S:g} s",
            next_step="Check its sampling rate, or leave the row out.",
        )


def oddities(signal: Signal) -> list[str]:
    """What is worth a look in a tracing, in one sentence each; nothing is refused."""
    named = dict(zip(map(canonical, signal.channels), signal.samples, strict=False))
    found = []
    faults = faults_of(signal.samples, signal.rate_hz)
    for fault in sorted({*faults} - {""}):
        found.append(f"A lead is {fault}.")
    if signal.samples.shape[-1] < SHORTEST_S * signal.rate_hz:
        found.append(f"The tracing is shorter than {SHORTEST_S:g} s.")
    moving = signal.samples[[fault != "flat" for fault in faults]]
    if _steps(moving)[1].max(initial=0) > UNIT_GAP:
        found.append(f"Leads differ more than {UNIT_GAP:g}-fold: mV and uV, or a lead is off.")
    if {"i", "ii", "iii"} <= set(named):
        limb = max(named[lead].std() for lead in ("i", "ii", "iii"))
        if (named["ii"] - named["i"] - named["iii"]).std() > EINTHOVEN * limb:
            found.append("Lead II is not I + III: names are swapped, or leads not simultaneous.")
    return found


def rotate_limb(signal: Signal, degrees: float) -> Signal:
    """The tracing of a heart that is turned in the frontal plane; chest leads stay.

    The limb leads are projections of one vector (Einthoven): x is I, y is (2 II - I) / sqrt(3).
    I and II of the turned vector give the other four.

    Args:
        signal: With the leads I and II; others of the six are changed where they are there.
        degrees: Positive turns the axis to the right, from I towards aVF.

    Raises:
        DataError: If I or II is not there.
    """
    places = {canonical(name): place for place, name in enumerate(signal.channels)}
    if not {"i", "ii"} <= set(places):
        raise DataError(
            "The heart's axis can only be turned where the leads I and II are there.",
            expected=f"I and II; the file has {', '.join(signal.channels) or 'no names'}",
            next_step="input.augment.rotate_limb=0",
        )
    angle = np.deg2rad(degrees)
    first, second = signal.samples[places["i"]], signal.samples[places["ii"]]
    x, y = first, (2 * second - first) / np.sqrt(3)
    one = np.cos(angle) * x - np.sin(angle) * y
    two = one / 2 + np.sqrt(3) / 2 * (np.sin(angle) * x + np.cos(angle) * y)
    three = two - one
    limb = (one, two, three, -(one + two) / 2, (one - three) / 2, (two + three) / 2)
    samples = signal.samples.copy()
    for lead, values in zip(LIMB_LEADS, limb, strict=True):
        if (place := places.get(canonical(lead))) is not None:
            samples[place] = values
    return Signal(samples, signal.rate_hz, signal.channels)
