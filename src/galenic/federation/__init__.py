"""Federations: patients stay where they are, and what was learned there is put together.

`update` and `aggregate` are pure functions on the tensors of adapters; `strategy`, `client` and
`server` carry them through Flower (Beutel et al., arXiv 2007.14390), in one process, in Flower's
simulation or on its SuperLink and SuperNodes. This file imports neither torch nor flwr.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from galenic.core.errors import MissingExtraError


def require_flower() -> None:
    """Check that Flower is there, and keep it and Ray from reporting their use.

    Raises:
        MissingExtraError: If it is not installed.
    """
    if importlib.util.find_spec("flwr") is None:
        raise MissingExtraError.of("flwr", "federated")
    # Both are read on import, and send data about a run to their makers otherwise.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Only what Flower says at `level` or above; what matters stands in the log of the run."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
