"""What a cardiologist measures on a tracing, as a table: the baseline of ECG networks.

    pip install neurokit2
    python evidence/prepare/ecg_features.py SOURCE TARGET

SOURCE holds the 500 records of PTB-XL and `records.csv`. TARGET gets `twelve_leads.csv` and
`lead_i.csv`: the rows of the manifest with rate and its spread, durations and heights of waves as
NeuroKit2 delineates them in lead II (lead I), and of every lead's median beat the highest and lowest
value, the area under QRS, the level after it, and the T wave. Nothing stands where no wave is found.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import neurokit2 as nk
import numpy as np
import pandas as pd
import wfdb

RATE = 500
KEPT = ["patient_id", "diagnostic_superclass"]
# Seconds around the R peak.
BEAT = (-0.25, 0.45)
PARTS = {"qrs": (-0.06, 0.06), "st": (0.08, 0.12), "t": (0.15, 0.4), "p": (-0.24, -0.08)}


def rhythm(lead: np.ndarray, peaks: np.ndarray) -> dict[str, float]:
    """Rate per minute, spread of the intervals, and medians of what is delineated, in seconds."""
    if len(peaks) < 3:
        return {}
    gaps = np.diff(peaks) / RATE
    found = {"rate": 60 / np.median(gaps), "rr_std": gaps.std(), "rr_step": np.abs(np.diff(gaps)).mean()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, waves = nk.ecg_delineate(lead, peaks, sampling_rate=RATE, method="dwt")
    except (ValueError, IndexError, ZeroDivisionError):
        return found
    at = {name: np.array(places, float) for name, places in waves.items()}
    spans = {
        "pr": ("ECG_P_Onsets", "ECG_R_Onsets"),
        "qrs": ("ECG_R_Onsets", "ECG_R_Offsets"),
        "qt": ("ECG_R_Onsets", "ECG_T_Offsets"),
        "p": ("ECG_P_Onsets", "ECG_P_Offsets"),
    }
    for name, (start, end) in spans.items():
        if start in at and end in at and len(at[start]) == len(at[end]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = float(np.nanmedian(at[end] - at[start]) / RATE)
    return found


def shape(lead: np.ndarray, peaks: np.ndarray) -> dict[str, float]:
    """Of the median beat, against the level before the P wave, in millivolts."""
    first, last = (round(edge * RATE) for edge in BEAT)
    beats = [lead[p + first : p + last] for p in peaks if p + first >= 0 and p + last <= len(lead)]
    if not beats:
        return {}
    beat = np.median(beats, axis=0)
    beat = beat - beat[: round(0.02 * RATE)].mean()
    part = {
        name: beat[round(a * RATE) - first : round(b * RATE) - first]
        for name, (a, b) in PARTS.items()
    }
    t = part["t"]
    return {
        "r": part["qrs"].max(),
        "s": part["qrs"].min(),
        "area": part["qrs"].sum() / RATE,
        "st": part["st"].mean(),
        "t": t[np.abs(t).argmax()],
        "p": part["p"].max(),
    }


def features(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of all leads with the rhythm of lead II, and of lead I alone."""
    record = wfdb.rdrecord(str(path))
    names = [name.lower() for name in record.sig_name]
    leads = {
        name: nk.ecg_clean(
            nk.signal_resample(column, sampling_rate=record.fs, desired_sampling_rate=RATE),
            sampling_rate=RATE,
        )
        for name, column in zip(names, record.p_signal.T, strict=True)
    }

    def peaks(name: str) -> np.ndarray:
        return nk.ecg_peaks(leads[name], sampling_rate=RATE)[1]["ECG_R_Peaks"]

    by_two, by_one = peaks("ii"), peaks("i")
    every = {f"rhythm_{k}": v for k, v in rhythm(leads["ii"], by_two).items()}
    for name, lead in leads.items():
        every |= {f"{name}_{k}": v for k, v in shape(lead, by_two).items()}
    alone = {f"rhythm_{k}": v for k, v in rhythm(leads["i"], by_one).items()}
    alone |= {f"i_{k}": v for k, v in shape(leads["i"], by_one).items()}
    return every, alone


def main(source: Path, target: Path) -> None:
    """Read, measure, write."""
    table = pd.read_csv(source / "records.csv")
    found = [features(source / name) for name in table["filename_lr"]]
    target.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(("twelve_leads", "lead_i")):
        measured = pd.DataFrame([both[place] for both in found]).round(5)
        pd.concat([table[KEPT], measured], axis=1).to_csv(target / f"{name}.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
