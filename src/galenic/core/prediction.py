"""Outputs of an objective over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from galenic.core.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


def predict(
    objective: nn.Module,
    data: Dataset[Any],
    *,
    collate: Callable[[list[Any]], dict[str, Tensor]],
    batch_size: int = 64,
    workers: int = 0,
) -> dict[str, Array]:
    """Every tensor output of `objective` but the loss, over all samples, in their order.

    Neither random state nor training modes are touched.

    Args:
        objective: `forward(**batch)` returns a dict of tensors [B, ...].
        data: Indexable samples; where it has an array `lengths`, samples of like size share a
            batch, which spares padding.
        collate: Samples to a batch of tensors.
        batch_size: Samples a batch.
        workers: Processes that load samples.

    Returns:
        Arrays [n, ...] by output name; half precision becomes float32.

    Raises:
        DataError: If there are no samples.
    """
    count = len(data)  # type: ignore[arg-type]
    if count == 0:
        raise DataError("There are no samples to predict.", expected="at least one sample")
    lengths = getattr(data, "lengths", None)
    order = np.arange(count) if lengths is None else np.argsort(lengths, kind="stable")
    loader = DataLoader(
        data,
        batch_size=batch_size,
        collate_fn=collate,
        sampler=order.tolist(),
        num_workers=workers,
        # Without one of its own a loader draws a seed from the global state.
        generator=torch.Generator(),
    )
    device = next(objective.parameters(), torch.zeros(0)).device
    parts: dict[str, list[Array]] = {}
    with evaluating(objective), torch.inference_mode():
        for batch in loader:
            outputs = objective(**to_device(batch, device))
            for name, value in outputs.items():
                if name != "loss" and isinstance(value, Tensor) and value.ndim > 0:
                    parts.setdefault(name, []).append(_array(value))
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate(values)[back] for name, values in parts.items()}


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """`batch` with its tensors on `device`; what is no tensor stays."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _array(value: Tensor) -> Array:
    half = value.dtype in (torch.float16, torch.bfloat16)
    return (value.float() if half else value).cpu().numpy()
