"""What a detector is trained for: classes by focal loss, boxes by overlap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.models.detection.boxes import area, complete_iou, generalised_iou
from galenic.models.detection.fcos import Fcos, Raw

BoxLoss = Literal["giou", "ciou"]
# A place answers for a box whose centre is within this many strides (Tian et al., 2022, 3.2).
RADIUS = 1.5
# A level answers for boxes whose farthest side is within this many strides of the place.
REACH = 8.0


class Detection(nn.Module):
    """A detector with its loss in training, and its detections in evaluation.

    Args:
        detector: With `detect`, and a loss of its own or the raw outputs of FCOS.
        box_loss: Overlap that the boxes of FCOS are trained by.
        penalty: Scalar added to the loss in training, such as a tuner's own term.
    """

    def __init__(
        self,
        detector: Any,
        box_loss: BoxLoss = "giou",
        penalty: Callable[[], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.penalty = penalty
        self.box_loss: BoxLoss = box_loss

    def forward(
        self, pixel_values: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss in training, else detections [B, D, 6].

        Args:
            pixel_values: [B, C, H, W].
            boxes: Corners in pixels of the input [B, M, 4].
            classes: [B, M]; -1 where an image has fewer boxes.
        """
        if not self.training or boxes is None or classes is None:
            return {"detections": self.detector.detect(pixel_values)}
        if isinstance(self.detector, Fcos):
            raw = self.detector(pixel_values)
            losses = fcos_losses(raw, boxes, classes, self.box_loss)
            loss = torch.stack(list(losses.values())).sum()
        else:
            loss = self.detector.loss(pixel_values, boxes, classes)
        return {"loss": loss if self.penalty is None else loss + self.penalty()}


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss, element by element (Lin et al., ICCV 2017, eq. 5); any shape."""
    plain = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = (logits.sigmoid() - targets).abs()
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * wrong**gamma * plain


def fcos_losses(raw: Raw, boxes: Tensor, classes: Tensor, box_loss: BoxLoss) -> dict[str, Tensor]:
    """The three losses, each a sum over the places of the batch by the number of positive ones.

    A batch without boxes has a class loss alone; the two others are zero.

    Args:
        raw: Of the heads.
        boxes: [B, M, 4].
        classes: [B, M]; -1 for none.
        box_loss: Overlap of the boxes.
    """
    which, sides = assign(raw.places, raw.strides, boxes, classes)
    positive = which >= 0
    count = positive.sum().clamp_min(1)
    found = classes.gather(1, which.clamp_min(0)) if classes.shape[1] else which
    names = torch.where(positive, found, torch.full_like(which, -1))
    kinds = torch.arange(raw.logits.shape[-1], device=names.device)
    targets = (names.unsqueeze(-1) == kinds).to(raw.logits.dtype)
    losses = {"class": focal_loss(raw.logits, targets).sum() / count}
    wanted = sides[positive]
    centred = centredness(wanted)
    overlap = complete_iou if box_loss == "ciou" else generalised_iou
    value = overlap(_corners(raw.sides[positive]), _corners(wanted))
    losses["box"] = ((1 - value) * centred).sum() / centred.sum().clamp_min(1e-6)
    losses["centre"] = (
        functional.binary_cross_entropy_with_logits(raw.centred[positive], centred, reduction="sum")
        / count
    )
    return losses


def assign(
    places: Tensor, strides: Tensor, boxes: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Which box each place answers for: one that it lies in, near its centre, of its level's size.

    Of several, the smallest (Tian et al., ICCV 2019, section 3.1).

    Args:
        places: [N, 2].
        strides: [N].
        boxes: [B, M, 4].
        classes: [B, M]; -1 for none.

    Returns:
        Number of the box [B, N], -1 for none, and its four sides as seen from there [B, N, 4].
    """
    if not boxes.shape[1]:
        none = torch.full((len(boxes), len(places)), -1, device=boxes.device)
        return none, boxes.new_zeros(len(boxes), len(places), 4)
    corners = boxes.unsqueeze(1)
    at = places.unsqueeze(1)
    sides = torch.cat([at - corners[..., :2], corners[..., 2:] - at], dim=-1)
    farthest = sides.amax(-1)
    reach = strides.unsqueeze(-1)
    levels, level = strides.unique(return_inverse=True)
    edges = functional.pad(REACH * levels[:-1], (1, 0))
    low, high = edges[level], functional.pad(edges[1:], (0, 1), value=torch.inf)[level]
    fits = (farthest > low.unsqueeze(-1)) & (farthest <= high.unsqueeze(-1))
    centre = (corners[..., :2] + corners[..., 2:]) / 2
    near = (at - centre).abs().amax(-1) < RADIUS * reach
    able = fits & near & (sides.amin(-1) > 0) & (classes >= 0).unsqueeze(1)
    cost = torch.where(able, area(boxes).unsqueeze(1), torch.inf)
    least, which = cost.min(dim=-1)
    picked = sides.gather(2, which[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
    return torch.where(least < torch.inf, which, torch.full_like(which, -1)), picked


def centredness(sides: Tensor) -> Tensor:
    """1 at the centre of a box, 0 at its edge [n], of sides [n, 4] (FCOS, eq. 3)."""
    x, y = sides[:, 0::2], sides[:, 1::2]
    ratio = (x.amin(1) / x.amax(1)) * (y.amin(1) / y.amax(1))
    return ratio.clamp_min(0).sqrt()


def _corners(sides: Tensor) -> Tensor:
    """Boxes around the origin; the overlap of two does not depend on where they are."""
    return torch.cat([-sides[:, :2], sides[:, 2:]], dim=1)
