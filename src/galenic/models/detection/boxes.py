"""Arithmetic of boxes as corners (x1, y1, x2, y2), on tensors of any leading shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 1e-7


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4]; 0 where a side is negative."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [..., n, m] of boxes [..., n, 4] and [..., m, 4]."""
    first, second = a.unsqueeze(-2), b.unsqueeze(-3)
    return _overlap(first, second)[0]


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU [...] of boxes pair by pair, -1 to 1 (Rezatofighi et al., CVPR 2019, eq. 2)."""
    iou, union = _overlap(a, b)
    hull = area(_hull(a, b))
    return iou - (hull - union) / (hull + EPSILON)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """CIoU [...] of boxes pair by pair (Zheng et al., AAAI 2020, eq. 9 to 12).

    Overlap less the squared distance of the centres in units of the hull's diagonal, less the
    difference of the aspect ratios; the latter's trade-off is no part of the gradient.
    """
    iou, _ = _overlap(a, b)
    hull = _hull(a, b)
    diagonal = (hull[..., 2:] - hull[..., :2]).square().sum(-1) + EPSILON
    apart = ((a[..., :2] + a[..., 2:]) - (b[..., :2] + b[..., 2:])).square().sum(-1) / 4
    gap = _angle(a) - _angle(b)
    shape = 4 / math.pi**2 * gap.square()
    with torch.no_grad():
        weight = shape / (1 - iou + shape + EPSILON)
    return iou - apart / diagonal - weight * shape


def _angle(boxes: Tensor) -> Tensor:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(EPSILON)
    return torch.atan(sides[..., 0] / sides[..., 1])


def _hull(a: Tensor, b: Tensor) -> Tensor:
    low = torch.minimum(a[..., :2], b[..., :2])
    return torch.cat([low, torch.maximum(a[..., 2:], b[..., 2:])], dim=-1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = area(a) + area(b) - shared
    return shared / (union + EPSILON), union


def suppress(boxes: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Which boxes greedy non-maximum suppression keeps, all images at once.

    A box is kept if no kept box of its class before it overlaps it by more than `threshold`.
    That rule is applied to all boxes at once until nothing changes: box i is settled after at
    most i rounds, in practice after two or three.

    Args:
        boxes: [B, N, 4], the best first.
        classes: [B, N].
        threshold: Of the intersection over union.

    Returns:
        bool [B, N].
    """
    count = boxes.shape[1]
    before = torch.ones(count, count, dtype=torch.bool, device=boxes.device).tril(-1)
    rivals = pairwise_iou(boxes, boxes) > threshold
    rivals &= (classes.unsqueeze(-1) == classes.unsqueeze(-2)) & before
    kept = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    while True:
        again = ~(rivals & kept.unsqueeze(1)).any(-1)
        if torch.equal(again, kept):
            return kept
        kept = again


def best(boxes: Tensor, scores: Tensor, *, most: int, candidates: int, threshold: float) -> Tensor:
    """The best detections of each image.

    Args:
        boxes: [B, N, 4], one a place.
        scores: [B, N, K], one a place and class.
        most: Detections of an image.
        candidates: Pairs of place and class that are looked at.
        threshold: Overlap from which one of two boxes of a class goes.

    Returns:
        [B, most, 6]: x1, y1, x2, y2, score, class, the best first; score 0 and class -1 where
        there are fewer.
    """
    kinds = scores.shape[-1]
    flat = scores.flatten(1)
    value, place = flat.topk(min(candidates, flat.shape[1]), dim=1)
    chosen = boxes.gather(1, (place // kinds).unsqueeze(-1).expand(-1, -1, 4))
    classes = place % kinds
    value = torch.where(suppress(chosen, classes, threshold), value, torch.zeros_like(value))
    value, order = value.topk(min(most, value.shape[1]), dim=1)
    classes = torch.where(value > 0, classes.gather(1, order), -torch.ones_like(order))
    chosen = chosen.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    found = torch.cat([chosen, value.unsqueeze(-1), classes.unsqueeze(-1).to(chosen)], dim=-1)
    short = most - found.shape[1]
    if short:
        filler = found.new_tensor([0, 0, 0, 0, 0, -1]).expand(len(found), short, 6)
        found = torch.cat([found, filler], dim=1)
    return found
