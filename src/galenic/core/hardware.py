"""What this machine is: device, precision, cores, memory."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any, Literal

from galenic.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]


def device() -> torch.device:
    """The device to work on: CUDA, then Apple's MPS, then the CPU."""
    import torch

    if torch.cuda.is_available():
        # Under torchrun every process has its own device.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def precision(wish: str = "auto", on: torch.device | None = None) -> Precision:
    """The precision to train in.

    Args:
        wish: `auto` takes bf16 on CUDA devices that have it, fp16 on older ones, else fp32.
        on: The device; by default the one of :func:`device`.

    Raises:
        ConfigError: If the wish is unknown, or fp16 is wished on a CPU.
    """
    import torch

    place = on or device()
    if wish == "auto":
        if place.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if wish == "fp32":
        return "fp32"
    if wish == "bf16":
        return "bf16"
    if wish == "fp16":
        if place.type == "cpu":
            raise ConfigError(
                "Precision fp16 needs a GPU; there is none here.",
                where="schedule.precision",
                expected="fp32 or bf16 on a CPU",
                next_step="schedule.precision=auto",
            )
        return "fp16"
    raise ConfigError(
        f"Unknown precision '{wish}'.",
        where="schedule.precision",
        expected="auto, fp32, bf16 or fp16",
    )


def cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # pragma: no cover - not on this system
        return os.cpu_count() or 1


def memory_bytes() -> tuple[int, int]:
    """(available, total) main memory in bytes."""
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def facts() -> dict[str, Any]:
    """What `galenic doctor` says about the machine; imports torch."""
    import torch

    available, total = memory_bytes()
    place = device()
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(total / 2**30, 1),
        "memory_free_gb": round(available / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": str(place),
        "precision": precision("auto", place),
    }
    if place.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(place)
        found["gpu_memory_gb"] = round(
            torch.cuda.get_device_properties(place).total_memory / 2**30, 1
        )
    return found
