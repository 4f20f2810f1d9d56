"""Random numbers: one seed, and named streams that do not disturb each other."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices), and ask cuDNN for the same sums each time.

    Args:
        seed: Any integer >= 0.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries below draw from the global state
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def stream(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names`: far apart for any two names, and stable."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream `names`, e.g. `rng(0, "augment", row)`."""
    return np.random.default_rng(stream(seed, *names))


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator (on the CPU) for the stream `names`."""
    import torch

    return torch.Generator().manual_seed(stream(seed, *names))
