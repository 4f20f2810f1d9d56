"""What every benchmark shares: alternating rounds in one process, memory, the result file."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
ROUNDS = 5
# A script that begins so can call `clocked(work)`: it prints the seconds that `work()` took and the
# MB that it held at most, beyond what the process held before.
CLOCK = """
import sys, time
from pathlib import Path

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

def clocked(work):
    Path("/proc/self/clear_refs").write_text("5")
    before, started = status("VmRSS"), time.perf_counter()
    work()
    print("\\nmeasured", time.perf_counter() - started, status("VmHWM") - before)
"""


@dataclass(frozen=True)
class Times:
    """One measure a round of both sides, in the order they were taken.

    Attributes:
        ours: Seconds (or whatever the unit is) of our side.
        peer: Of the peer, taken right before or after.
    """

    ours: Sequence[float]
    peer: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Ours over the peer, round by round: what slows a whole round cancels out."""
        return [a / b for a, b in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of :attr:`ratios`."""
        return statistics.median(self.ratios)


def alternate(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    rounds: int = ROUNDS,
    warmup: int = 1,
) -> Times:
    """Time two callables in alternating rounds; who goes first alternates as well.

    A callable may return a float, which is then taken as its measure: for sides that need a
    set-up which must not count.

    Args:
        ours: Our side.
        peer: What it is compared with.
        rounds: At least 5.
        warmup: Rounds before, that do not count.

    Raises:
        ValueError: For fewer than 5 rounds.
    """
    if rounds < ROUNDS:
        raise ValueError(f"A benchmark takes at least {ROUNDS} rounds, not {rounds}.")
    sides = {"ours": ours, "peer": peer}
    taken: dict[str, list[float]] = {"ours": [], "peer": []}
    for index in range(-warmup, rounds):
        order = ("ours", "peer") if index % 2 == 0 else ("peer", "ours")
        for name in order:
            seconds = _time(sides[name])
            if index >= 0:
                taken[name].append(seconds)
    return Times(taken["ours"], taken["peer"])


def _time(side: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    measure = side()
    seconds = time.perf_counter() - started
    return measure if isinstance(measure, float) else seconds


def apart(measure: Callable[..., float], *arguments: Any) -> float:
    """`measure(*arguments)` in a process of its own, which no earlier round has left memory in."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *arguments).result()


def clocked(python: str, script: str, *arguments: object, **environ: str) -> tuple[float, float]:
    """Run a script that calls `clocked` once, in a process of its own.

    Args:
        python: The interpreter.
        script: What follows :data:`CLOCK`.
        arguments: From `sys.argv[1]` on.
        environ: Set in addition to what is.

    Returns:
        Seconds, and MB at most.

    Raises:
        RuntimeError: With the end of what it said, where it did not come so far.
    """
    done = subprocess.run(
        [python, "-c", CLOCK + script, *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, **environ},
    )  # fmt: skip
    told = [line.split() for line in done.stdout.splitlines() if line.startswith("measured")]
    if not told:
        raise RuntimeError(done.stderr[-2000:])
    return float(told[0][1]), float(told[0][2])


@dataclass
class SavedTensors:
    """Bytes that autograd keeps for the backward pass: the part of memory a loop decides on.

    Use as a context manager around one step; tensors that share storage count once.

    Attributes:
        peak_bytes: Most that was kept at any moment.
    """

    peak_bytes: int = 0

    def __enter__(self) -> SavedTensors:
        import torch

        self._seen: dict[int, list[int]] = {}
        self._bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Any) -> _Kept:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        entry = self._seen.setdefault(place, [0, storage.nbytes()])
        if entry[0] == 0:
            self._bytes += entry[1]
            self.peak_bytes = max(self.peak_bytes, self._bytes)
        entry[0] += 1
        return _Kept(tensor, self, place)

    def _drop(self, place: int) -> None:
        entry = self._seen[place]
        entry[0] -= 1
        if entry[0] == 0:
            self._bytes -= entry[1]
            del self._seen[place]


class _Kept:
    """A saved tensor that tells when the graph lets go of it."""

    def __init__(self, tensor: Any, owner: SavedTensors, place: int) -> None:
        self.tensor, self._owner, self._place = tensor, owner, place

    def __del__(self) -> None:
        self._owner._drop(self._place)


def write_result(
    *,
    name: str,
    unit: str,
    times: Times,
    peer: dict[str, str],
    reach: str,
    met: Callable[[float], bool],
    same_result: str,
    module: str | None = None,
    folder: Path = RESULTS,
) -> dict[str, Any]:
    """Write `<folder>/<name>.json` and print its line.

    Args:
        name: Of the benchmark.
        unit: Of `times`.
        times: Both sides.
        peer: `name` and `version` of what we compare with.
        reach: What is to be reached, in words.
        met: Whether a ratio (ours over peer) reaches it.
        same_result: How it was checked that both sides computed the same.
        module: Of `benchmarks`, where it is not called as the benchmark is.
        folder: Where the file goes.
    """
    from galenic.core.files import atomic_json

    ratio = times.ratio
    result = {
        "name": name,
        "unit": unit,
        "ours": _spread(times.ours),
        "peer": {**peer, **_spread(times.peer)},
        "ratio": _spread(times.ratios),
        "reach": reach,
        "met": bool(met(ratio)),
        "same_result": same_result,
        "machine": machine(),
        "command": f"python -m benchmarks.{module or name}",
    }
    atomic_json(folder / f"{name}.json", result)
    verdict = "met" if result["met"] else "NOT met"
    print(f"{name}: ratio {ratio:.3f} ({reach}: {verdict}); {same_result}", file=sys.stderr)
    return result


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> str:
    """Cores, processor and Python, without a name of the host."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} cores, {platform.machine()}, {platform.system()}, {sys.version.split()[0]}"
