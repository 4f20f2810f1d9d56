"""Names of a tuner's package that bring torch and peft only when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(package: str, **names: str) -> Callable[[str], Any]:
    """A module's `__getattr__` (PEP 562): reading CAPABILITIES must not import torch and peft.

    Importing `model`, where the configs of peft are taken from, is what registers a method.

    Args:
        package: `__name__` of the package.
        **names: Module below `package` that holds each name.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(f"{package}.{names[name]}"), name)

    return get
