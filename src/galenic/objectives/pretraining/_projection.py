"""Two views of a sample and the heads that they are compared behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from galenic.core.errors import DataError
from galenic.core.seeding import stream


@contextmanager
def drawn(seed: int, name: str) -> Iterator[None]:
    """Modules made inside draw their weights from the stream `name`, and from nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, name))
        yield


def mlp(sizes: Sequence[int], *, batch_norm: bool) -> nn.Sequential:
    """Linear layers with ReLU between them.

    Args:
        sizes: Width before, between and after the layers.
        batch_norm: Whether a batch norm precedes each ReLU; then no layer has a bias.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        norm = [nn.BatchNorm1d(before)] if batch_norm else []
        layers += [*norm, nn.ReLU()] if layers else []
        layers.append(nn.Linear(before, after, bias=not batch_norm))
    return nn.Sequential(*layers)


def pair(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The two views [B, ...] of a batch [B, 2, ...].

    Raises:
        DataError: If there are not two.
    """
    if pixels.shape[1] != 2:
        raise DataError(
            f"A batch of shape {tuple(pixels.shape)} holds no two views of a sample.",
            expected="[B, 2, C, ...]",
        )
    return pixels[:, 0], pixels[:, 1]


def require_several(count: int, fault: str) -> None:
    """Refuse to train on a batch of one sample.

    Args:
        count: Samples of the batch.
        fault: What one sample does not allow.

    Raises:
        DataError: If there is one.
    """
    if count < 2:
        raise DataError(
            fault, next_step="Choose a schedule.batch_size that does not leave one sample over."
        )
