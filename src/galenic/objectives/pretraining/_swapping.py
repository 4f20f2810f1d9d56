"""Swapped prediction of balanced cluster assignments (Caron et al., 2020, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.core.errors import BackboneError
from galenic.core.prediction import evaluating
from galenic.models.backbone import Backbone
from galenic.objectives.pretraining._momentum import enqueue
from galenic.objectives.pretraining._projection import drawn, mlp, pair, require_several

if TYPE_CHECKING:
    from galenic.objectives.pretraining.swav import Config, LocalConfig


class SwappedAssignments(nn.Module):
    """Cross-entropy of the codes of one view under what is said of the others.

    The queue, its place and how much of it is filled are buffers, so that a checkpoint holds them.

    Args:
        backbone: Its network is trained.
        config: Of the method.
        seed: Of projection and prototypes.

    Raises:
        BackboneError: If the network cannot read the small crops.
    """

    queue: Tensor
    place: Tensor
    filled: Tensor

    def __init__(self, backbone: Backbone, config: Config, seed: int) -> None:
        super().__init__()
        if config.local is not None:
            _require_reads(backbone, config.local)
        self.key, self.settings = backbone.inputs.key, config
        # Nobody may ever tell: then nothing waits for a later epoch.
        self.epoch: int | None = None
        self.backbone = backbone
        backbone.network.requires_grad_(True)
        with drawn(seed, "swav"):
            self.head = mlp((backbone.width, config.hidden, config.dim), batch_norm=True)
            self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        self.normalise()
        self.register_buffer("queue", torch.zeros(config.queue, 2, config.dim))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def set_epoch(self, epoch: int) -> None:
        """Tell how far the training is: it decides on frozen prototypes and on the queue."""
        self.epoch = epoch

    @torch.no_grad()
    def normalise(self) -> None:
        """Every prototype gets length 1."""
        self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight, dim=1))

    def forward(
        self, draws: Tensor, local: Tensor | None = None, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """Loss of a batch; in training the queue moves on.

        Args:
            draws: Not needed: all that is random are the views.
            local: Small crops [B, n, C, ...].
            **inputs: Two views [B, 2, C, ...].

        Returns:
            `loss`: scalar; `losses`: [B].

        Raises:
            DataError: If a batch of one sample is to be trained on.
        """
        if self.training:
            require_several(len(draws), "One sample cannot be shared out among prototypes.")
        points = self._points(torch.stack(pair(inputs[self.key])), local)
        scores = self._scores(points)
        codes = self._codes(points[:2].detach(), scores[:2].detach())
        losses = swapped(scores, codes, self.settings.temperature)
        return {"loss": losses.mean(), "losses": losses}

    def _points(self, pixels: Tensor, local: Tensor | None) -> Tensor:
        """On the unit sphere [V, B, dim], of two views [2, B, C, ...] and the small crops."""
        pooled = [self._pooled(pixels)]
        if local is not None:
            pooled.append(self._pooled(local.transpose(0, 1)))
        features = torch.cat(pooled)
        # One batch norm over all crops, as in the published code.
        projected = self.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return functional.normalize(projected, dim=-1)

    def _pooled(self, pixels: Tensor) -> Tensor:
        """[V, B, width]; all crops of one size pass at once."""
        found = self.backbone(**{self.key: pixels.flatten(0, 1)}).pooled
        return found.unflatten(0, pixels.shape[:2])

    def _scores(self, points: Tensor) -> Tensor:
        """Cosines [..., K] with the prototypes."""
        waits = self.epoch is not None and self.epoch < self.settings.freeze_epochs
        weight = self.prototypes.weight
        return functional.linear(points, weight.detach() if waits else weight)

    @torch.no_grad()
    def _codes(self, points: Tensor, scores: Tensor) -> Tensor:
        """Of the two views [2, B, K]; what is in the queue has its share of the prototypes too."""
        config, batch = self.settings, scores.shape[1]
        waits = self.epoch is not None and self.epoch < config.queue_epochs
        if self.training and config.queue and not waits:
            if self.filled == config.queue:
                earlier = functional.linear(self.queue.transpose(0, 1), self.prototypes.weight)
                scores = torch.cat([earlier.to(scores.dtype), scores], dim=1)
            enqueue(self.queue, self.place, points.transpose(0, 1))
            self.filled.copy_((self.filled + batch).clamp_max(config.queue))
        return torch.stack(
            [sinkhorn(view, config.epsilon, config.iterations)[-batch:] for view in scores]
        )


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes [B, K]: each sample shares out 1, and each prototype gets close to B / K.

    The exponentials of Cuturi (NeurIPS 2013) are kept as logarithms, which cannot overflow.

    Args:
        scores: [B, K].
        epsilon: Weight of the entropy (Caron et al., 2020, equation 3).
        iterations: Of scaling columns, then rows.
    """
    logs = scores.float() / epsilon
    for _ in range(iterations):
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
    return logs.exp()


def swapped(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Cross-entropy [B] of each code under every other view, their mean (equations 1 and 2).

    Args:
        scores: [V, B, K].
        codes: Of the first views [A, B, K].
        temperature: Divides the cosines.
    """
    said = (scores.float() / temperature).log_softmax(dim=-1)
    terms = [
        -(code * said[view]).sum(dim=-1)
        for place, code in enumerate(codes)
        for view in range(len(said))
        if view != place
    ]
    return torch.stack(terms).mean(dim=0)


def _require_reads(backbone: Backbone, local: LocalConfig) -> None:
    """Run the network once on zeros of the size of a small crop."""
    spec = backbone.inputs
    if spec.size is None or local.share == 1:
        return
    sides = [round(local.share * side) for side in spec.size]
    reference = next(backbone.parameters())
    pixels = reference.new_zeros(2, spec.channels, *sides)
    try:
        with evaluating(backbone), torch.no_grad():
            backbone(**{spec.key: pixels})
    except (RuntimeError, ValueError, IndexError) as error:
        by = " x ".join(map(str, sides))
        raise BackboneError(
            f"'{backbone.spec}' cannot read small crops of {by} pixels.",
            where="pretraining.local.share",
            expected="sides that the network can read",
            next_step="pretraining.local.share=1 makes them as large as the whole views.",
        ) from error
