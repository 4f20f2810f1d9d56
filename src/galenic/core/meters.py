"""Meters: how long, how much memory, how many parameters."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_STATM = Path("/proc/self/statm")
_MB = 1024 * 1024


class Meter:
    """Time and peak memory of a `with` block.

    Host memory is the growth of the resident set since the start of the block, sampled by a
    thread. Meters may be nested.

    Attributes:
        seconds: Wall time.
        host_mb: Peak growth of the process's resident memory, in MiB.
        cuda_mb: Peak of the memory that torch had allocated on the CUDA devices, in MiB.

    Args:
        interval: Seconds between two samples.
    """

    def __init__(self, interval: float = 0.01) -> None:
        self.seconds = 0.0
        self.host_mb = 0.0
        self.cuda_mb = 0.0
        self._interval = interval
        self._done = threading.Event()

    @property
    def peak_memory_mb(self) -> float:
        """Peak memory in MiB where the work is done: on the CUDA device if one was used."""
        return self.cuda_mb or self.host_mb

    def __enter__(self) -> Meter:
        self._done.clear()
        self._base = self._peak = resident_bytes()
        _reset_cuda_peak()
        self._thread = threading.Thread(target=self._sample, name="galenic-meter", daemon=True)
        self._thread.start()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._started
        self._done.set()
        self._thread.join()
        self._peak = max(self._peak, resident_bytes())
        self.host_mb = (self._peak - self._base) / _MB
        self.cuda_mb = _cuda_peak() / _MB

    def _sample(self) -> None:
        while not self._done.wait(self._interval):
            self._peak = max(self._peak, resident_bytes())


def resident_bytes() -> int:
    """Resident memory of this process, in bytes."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        import psutil  # type: ignore[import-untyped]

        return int(psutil.Process().memory_info().rss)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers of parameters; a shared parameter counts once."""
    counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)


def _reset_cuda_peak() -> None:
    # Where torch was not imported, nothing can be on a device.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def _cuda_peak() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    devices = range(torch.cuda.device_count())
    return sum(int(torch.cuda.max_memory_allocated(index)) for index in devices)
