"""Clients in processes of their own: each opens the cohort once, and keeps it open."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.federation.update import Update
from galenic.tasks._federate_config import Config

if TYPE_CHECKING:
    from flwr.app import Context

    from galenic.federation.messages import Order
    from galenic.tasks.federate import FederateJob


def train_apart(config: Config) -> Callable[[Order, Context], Update]:
    """What a client of Flower's simulation does; its part of the cohort goes by its number."""
    from galenic.federation.client import number_of

    text = config.model_dump_json()

    def train(order: Order, context: Context) -> Update:
        return opened(text).client(number_of(context), order)

    return train


@lru_cache(maxsize=1)
def opened(text: str, apart: bool = False) -> FederateJob:
    """The job of a config as JSON, its run folder a temporary one that goes with the process.

    Args:
        text: The config.
        apart: Whether the cohort is one client's own, and not to be parted.
    """
    from galenic.tasks.federate import FederateJob

    config = Config.model_validate_json(text)
    place = tempfile.mkdtemp(prefix="galenic-client-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    scratch = Run.create(Path(place), "client")
    scratch.start(config.model_dump(mode="json"), seed=config.seed)
    seed_everything(config.seed)
    return FederateJob(config, scratch, parted=not apart)
