"""Heat maps of what a classifier of pictures looked at, whatever its network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from galenic.core.prediction import evaluating, to_device
from galenic.evaluation.saliency import grad_cam, normalised, rollout
from galenic.models.anatomy import anatomy
from galenic.models.backbone import Backbone
from galenic.models.prefix import unwrapped
from galenic.objectives.classification import Classifier
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.inputs import Array, Inputs


def heat(
    objective: Classifier,
    inputs: Inputs,
    rows: Sequence[int],
    collate: Callable[[list[Any]], dict[str, Tensor]],
) -> dict[int, Array]:
    """Maps [h, w] from 0 to 1 of some samples: attention rollout, or Grad-CAM of a convolutional net.

    Args:
        objective: On a pooled feature of a network of pictures; else there are no maps.
        inputs: What that network reads.
        rows: Samples.
        collate: Samples to a batch.

    Returns:
        By row; empty where the network has neither a grid of attention nor a last map.
    """
    encoder = objective.encoder
    pictures = inputs.modality == "image" and inputs.spec.form == "image"
    if not rows or not pictures or not isinstance(encoder, PooledEncoder):
        return {}
    batch = collate([inputs[row] for row in rows])
    device = next(objective.parameters()).device
    family = anatomy(encoder.backbone.network).family
    with evaluating(objective):
        look = attended if family == "transformer" else activated
        maps = look(objective, encoder.backbone, to_device(batch, device))
    if maps is None:
        return {}
    return dict(zip(rows, normalised(maps).cpu().numpy().astype(np.float32), strict=True))


def attended(objective: Classifier, backbone: Backbone, batch: dict[str, Tensor]) -> Tensor | None:
    """Rollout from the pooled tokens to the grid, [B, rows, columns]; None without such a grid."""
    layers: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
            layers.append(output[1])

    kinds = [m for m in backbone.network.modules() if "attention" in type(m).__name__.lower()]
    with _eager(backbone.network), _hooked(kinds, keep), torch.no_grad():
        objective(**batch)
    if backbone.grid is None:
        return None
    first, count = backbone.prefix_tokens, backbone.prefix_tokens + int(np.prod(backbone.grid))
    if not layers or any(weights.shape[-2:] != (count, count) for weights in layers):
        return None
    flow = rollout(layers)
    read = flow[:, :1] if backbone.pool == "cls" else flow[:, first:]
    return read[:, :, first:].mean(dim=1).unflatten(1, backbone.grid)


def activated(objective: Classifier, backbone: Backbone, batch: dict[str, Tensor]) -> Tensor | None:
    """Grad-CAM of the predicted class on the network's last map [B, h, w]; None without a map."""
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        state = output if isinstance(output, Tensor) else output[0]
        states.append(state)

    key = backbone.inputs.key
    # A frozen network has a gradient only where its input asks for one.
    batch = {**batch, key: batch[key].clone().requires_grad_(True)}
    with _hooked([backbone.network], keep), torch.enable_grad():
        logits = objective(**batch)["logits"]
        if states[0].ndim != 4:
            return None
        if logits.ndim > 1:
            said = logits.gather(1, logits.argmax(dim=1, keepdim=True))
        else:
            said = logits if objective.kind == "continuous" else logits.abs()
        # Trees and votes have no gradient.
        if not said.requires_grad:
            return None
        [gradient] = torch.autograd.grad(said.sum(), states[0])
    return grad_cam(states[0].detach(), gradient)


@contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eager(network: nn.Module) -> Iterator[None]:
    """Attention that gives its weights; afterwards the faster one again."""
    config: Any = getattr(unwrapped(network), "config", None)
    before = getattr(config, "_attn_implementation", None)
    if before is None:
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
