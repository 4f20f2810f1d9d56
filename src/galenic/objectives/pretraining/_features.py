"""A student that agrees with the features of a teacher (Ranzinger et al., CVPR 2024, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.core.errors import BackboneError
from galenic.core.inputs import InputSpec
from galenic.models.backbone import Backbone, Features, open_backbone
from galenic.objectives.pretraining._projection import drawn, mlp, require_several

if TYPE_CHECKING:
    from galenic.objectives.pretraining.feature_distillation import Config

# Shares of direction and of distance in what a map is judged by (section 3.2).
DIRECTION, DISTANCE = 0.9, 0.1


class FeatureDistillation(nn.Module):
    """How far a student's features are from a teacher's, behind a head each.

    The pooled feature is judged by its direction, 1 - cos; a place of the map by
    0.9 (1 - cos) + 0.1 smooth L1. Features of the teacher are standardised channel by channel
    before, so that channels of wide range do not drown the others.

    Args:
        backbone: The student; its network is trained.
        config: Of the method.
        seed: Of the heads.

    Raises:
        BackboneError: If one of both reads no pictures or gives no map, or if they read others.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, config: Config, seed: int) -> None:
        super().__init__()
        inputs = backbone.inputs
        _require_map(backbone)
        teacher = open_backbone(
            config.teacher, modality="image", channels=inputs.channels, size=inputs.size
        )
        _require_map(teacher)
        self.key, self.places = inputs.key, config.places
        self.backbone = backbone
        backbone.network.requires_grad_(True)
        # In a list it is no part of the objective: not saved, not counted, never in training mode.
        self._teacher = [teacher.eval().requires_grad_(False)]
        with drawn(seed, "feature_distillation"):
            sizes = (backbone.width, backbone.width, teacher.width)
            self.pooled = mlp(sizes, batch_norm=False)
            self.mapped = mlp(sizes, batch_norm=False)
        self.pooled_norm = nn.BatchNorm1d(teacher.width, affine=False)
        self.mapped_norm = nn.BatchNorm2d(teacher.width, affine=False)
        (mean, std), (their_mean, their_std) = map(_moments, (inputs, teacher.inputs))
        self.register_buffer("shift", (mean - their_mean) / their_std, persistent=False)
        self.register_buffer("scale", std / their_std, persistent=False)

    def forward(self, draws: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            draws: Not needed: nothing is drawn.
            **inputs: Pixels [B, C, H, W]; with [B, S, C, H, W] each of S slices is a picture.

        Returns:
            `loss`: scalar; `losses`, `pooled_losses` and `place_losses`: [B].

        Raises:
            DataError: If a batch of one picture is to be trained on.
        """
        pixels = inputs[self.key]
        samples = len(pixels)
        pixels = pixels.flatten(0, -4)
        if self.training:
            require_several(len(pixels), "The features of one picture cannot be standardised.")
        with torch.no_grad():
            wanted = self.asked(pixels)
            pooled_target = self.pooled_norm(wanted.pooled.float())
            map_target = self.mapped_norm(_grid(wanted, self._teacher[0]).float())
        features = self.backbone(**{self.key: pixels})
        pooled = 1 - functional.cosine_similarity(
            self.pooled(features.pooled).float(), pooled_target, dim=-1
        )
        places = self._places(_grid(features, self.backbone), map_target)
        pooled, places = (of.view(samples, -1).mean(dim=1) for of in (pooled, places))
        losses = pooled + self.places * places
        return {
            "loss": losses.mean(),
            "losses": losses,
            "pooled_losses": pooled,
            "place_losses": places,
        }

    def asked(self, pixels: Tensor) -> Features:
        """What the teacher says of pixels [B, C, H, W] in the student's units."""
        teacher = self._teacher[0].to(pixels.device)
        found: Features = teacher(**{teacher.inputs.key: pixels * self.scale + self.shift})
        return found

    def _places(self, own: Tensor, target: Tensor) -> Tensor:
        """Losses [B] of the student's map [B, width, h, w], at the places of `target`."""
        own = functional.adaptive_avg_pool2d(own, (target.shape[2], target.shape[3]))
        found = self.mapped(own.flatten(2).transpose(1, 2)).float()
        target = target.flatten(2).transpose(1, 2)
        direction = 1 - functional.cosine_similarity(found, target, dim=-1)
        distance = functional.smooth_l1_loss(found, target, reduction="none").mean(dim=-1)
        return (DIRECTION * direction + DISTANCE * distance).mean(dim=1)


def _require_map(backbone: Backbone) -> None:
    if backbone.inputs.form != "image" or backbone.grid is None:
        raise BackboneError(
            f"'{backbone.spec}' gives no map of a picture.",
            expected="a vision transformer or a convolutional network",
        )


def _grid(features: Features, backbone: Backbone) -> Tensor:
    """The map [B, width, rows, columns] of the tokens behind the prefix."""
    assert features.tokens is not None and backbone.grid is not None
    places = features.tokens[:, backbone.prefix_tokens :]
    return places.transpose(1, 2).unflatten(2, backbone.grid)


def _moments(inputs: InputSpec) -> tuple[Tensor, Tensor]:
    """Mean and spread [C, 1, 1] that a network wants pixels normalised by."""
    mean = torch.tensor(inputs.mean or (0.0,) * inputs.channels)
    std = torch.tensor(inputs.std or (1.0,) * inputs.channels)
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)
