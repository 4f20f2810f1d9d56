"""A cohort of a million rows: opened and split by patient, against reading its bare table."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.harness import ROUNDS, Times, write_result

ROWS = 1_000_000
MOST_SECONDS = 10.0
MOST_BYTES = 2 * 10**9


def write(path: Path) -> None:
    """A manifest of pictures: about four rows a patient, five classes, a date, a hospital."""
    rng = np.random.default_rng(0)
    patient = np.sort(rng.integers(0, ROWS // 4, ROWS))
    days = pd.to_timedelta(rng.integers(0, 3000, ROWS), unit="D")
    table = pd.DataFrame(
        {
            "patient_id": [f"p{number:07d}" for number in patient],
            "image": [f"images/{number:07d}.png" for number in range(ROWS)],
            "label": rng.choice(["a", "b", "c", "d", "e"], ROWS, p=[0.5, 0.2, 0.15, 0.1, 0.05]),
            "hospital": rng.choice(["north", "south", "east"], ROWS),
            "date": (pd.Timestamp("2015-01-01") + days).strftime("%Y-%m-%d"),
        }
    )
    table.to_csv(path, index=False)


def measure(path: str, answer: multiprocessing.Queue[tuple[float, int, int]]) -> None:
    """In a process of its own: seconds, peak bytes and patients on two sides."""
    from galenic.data.cohort import Cohort
    from galenic.data.splits import PARTS, SplitConfig, make_splits

    started = time.perf_counter()
    cohort = Cohort.open(path)
    splits = make_splits(cohort, SplitConfig(), seed=0)
    seconds = time.perf_counter() - started
    sides = [set(cohort.patient_ids[getattr(splits, part)].tolist()) for part in PARTS]
    shared = len(sides[0] & sides[1]) + len(sides[0] & sides[2]) + len(sides[1] & sides[2])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.put((seconds, peak, shared))


def main() -> None:
    """Measure and write the result."""
    context = multiprocessing.get_context("spawn")
    seconds, peaks, shared, bare = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.csv"
        write(path)
        for _ in range(ROUNDS):
            answer = context.Queue()
            process = context.Process(target=measure, args=(str(path), answer))
            process.start()
            took, peak, both = answer.get()
            process.join()
            seconds.append(took)
            peaks.append(peak)
            shared.append(both)
            started = time.perf_counter()
            pd.read_csv(path, engine="pyarrow")
            bare.append(time.perf_counter() - started)
    most = max(peaks)
    write_result(
        name="million_rows",
        unit="s",
        times=Times(seconds, bare),
        peer={"name": "pandas.read_csv(engine='pyarrow') alone", "version": pd.__version__},
        reach=f"under {MOST_SECONDS:g} s and 2 GB for our side",
        met=lambda _: statistics.median(seconds) < MOST_SECONDS and most < MOST_BYTES,
        same_result=f"peak {most / 1e9:.2f} GB; patients on two sides: {sum(shared)}",
    )


if __name__ == "__main__":
    main()
