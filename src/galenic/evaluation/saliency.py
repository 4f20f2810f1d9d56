"""Where a network looks: attention rollout and Grad-CAM, as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """How much of each input token is in each output token (Abnar and Zuidema, ACL 2020).

    The product over the layers of (A + I) / 2, where A is the mean over heads and I stands for the
    residual path.

    Args:
        attentions: Of each layer, from first to last, [B, heads, N, N], rows summing to 1.

    Returns:
        [B, N, N], rows summing to 1.
    """
    whole = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for attention in attentions:
        layer = attention.float().mean(dim=1)
        whole = (layer + torch.eye(layer.shape[-1], device=layer.device)) / 2 @ whole
    return whole


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Where a map speaks for the score (Selvaraju et al., ICCV 2017, eq. 1 and 2).

    Args:
        activations: Of a layer [B, C, H, W].
        gradients: Of the score by them, likewise.

    Returns:
        ReLU(sum_c mean_hw(gradient_c) activation_c), [B, H, W].
    """
    weights = gradients.mean(dim=(-2, -1), keepdim=True)
    return (weights * activations).sum(dim=1).relu()


def normalised(maps: Tensor) -> Tensor:
    """Each map [B, H, W] from 0 to 1; one that is the same everywhere is 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(1e-12), 0.0)
