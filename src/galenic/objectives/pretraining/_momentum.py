"""Momentum contrast (He et al., 2020, section 3; Chen et al., 2020)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.core.seeding import generator
from galenic.models.backbone import Backbone
from galenic.objectives.pretraining._projection import drawn, mlp, pair

if TYPE_CHECKING:
    from galenic.objectives.pretraining.moco import Config


class Branch(nn.Module):
    """A backbone and its head; gives points on the unit sphere."""

    def __init__(self, backbone: Backbone, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = mlp((backbone.width, backbone.width, dim), batch_norm=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, dim] of pixels [B, C, ...]."""
        pooled = self.backbone(**{self.backbone.inputs.key: pixels}).pooled
        return functional.normalize(self.head(pooled), dim=1)


class MomentumContrast(nn.Module):
    """Cross-entropy of finding the key of a query among the queue.

    The queue and its place are buffers, and the slow branch is changed in place, so that a
    checkpoint holds all of them.

    Args:
        backbone: Its network is trained; a copy of it is the slow one.
        config: Of the method.
        seed: Of the head and of the first queue.
    """

    queue: Tensor
    place: Tensor

    def __init__(self, backbone: Backbone, config: Config, seed: int) -> None:
        super().__init__()
        self.key = backbone.inputs.key
        self.momentum, self.temperature = config.momentum, config.temperature
        with drawn(seed, "moco"):
            self.fast = Branch(backbone, config.dim)
        backbone.network.requires_grad_(True)
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)
        first = torch.randn(config.queue, config.dim, generator=generator(seed, "queue"))
        self.register_buffer("queue", functional.normalize(first, dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def forward(self, draws: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Loss of a batch; in training, the slow branch follows and the queue moves on.

        Args:
            draws: Not needed: all that is random are the views.
            **inputs: Two views [B, 2, C, ...].

        Returns:
            `loss`: scalar; `losses`: [B].
        """
        del draws
        first, second = pair(inputs[self.key])
        queries = self.fast(first)
        with torch.no_grad():
            if self.training:
                self._follow()
            keys = self.slow(second)
        # A copy: the queue moves on before the gradient is taken.
        losses = contrast(queries, keys, self.queue.clone(), self.temperature)
        if self.training:
            enqueue(self.queue, self.place, keys)
        return {"loss": losses.mean(), "losses": losses}

    def _follow(self) -> None:
        for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)


@torch.no_grad()
def enqueue(queue: Tensor, place: Tensor, keys: Tensor) -> None:
    """The newest keys take the places of the oldest, in place.

    Args:
        queue: [K, ...].
        place: Of the oldest, scalar; it moves on.
        keys: [B, ...].
    """
    size = len(queue)
    keys = keys[-size:].to(queue.dtype)
    places = (place + torch.arange(len(keys), device=keys.device)) % size
    queue.index_copy_(0, places, keys)
    place.copy_((place + len(keys)) % size)


def contrast(queries: Tensor, keys: Tensor, others: Tensor, temperature: float) -> Tensor:
    """InfoNCE [B] of each query against its key and all others (He et al., 2020, eq. 1).

    Args:
        queries: [B, d], of length 1, as all the others.
        keys: [B, d].
        others: [K, d].
        temperature: Divides the cosines.
    """
    alike = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([alike, queries @ others.T], dim=1).float() / temperature
    first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return functional.cross_entropy(logits, first, reduction="none")
