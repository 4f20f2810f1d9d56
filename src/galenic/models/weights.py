"""Checkpoints as plain tensors, never as code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from galenic.core.errors import WeightsError

PARALLEL = "module."


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without the prefix of data-parallel training.

    Args:
        path: `.safetensors`, or a file of `torch.save`: a state dict, or a dict with one under
            `state_dict`.

    Raises:
        WeightsError: If it is damaged, would run code, or holds no state dict.
    """
    try:
        found = _load(path)
    except pickle.UnpicklingError:
        raise WeightsError(
            "The checkpoint would run code; it was not loaded.",
            where=str(path),
            expected="safetensors, or a plain state dict",
        ) from None
    except Exception as error:
        # What a damaged file makes of the parsers is of any kind.
        raise WeightsError(f"The weights cannot be read: {error}", where=str(path)) from None
    state = found.get("state_dict", found) if isinstance(found, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError("The file holds no state dict.", where=str(path))
    if all(name.startswith(PARALLEL) for name in state):
        return {name.removeprefix(PARALLEL): value for name, value in state.items()}
    return dict(state)


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_numbers()):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _plain_numbers() -> list[Any]:
    """NumPy's scalars, such as the validation figure that training scripts save beside weights."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)]
    # Files of NumPy 1 name it by its old place.
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
