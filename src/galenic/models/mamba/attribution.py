"""Which token of a history an answer leant on.

Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", 2017, arXiv 1703.01365.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from galenic.core.prediction import evaluating


def integrated_gradients(
    objective: nn.Module,
    embedding: nn.Module,
    history: Mapping[str, Tensor],
    *,
    steps: int = 32,
) -> Tensor:
    """Share of each token in an answer, on the way from codes of zeros to those that are.

    The shares add up to the answer less that of codes of zeros, the better the more steps. The
    other streams stay as they are.

    Args:
        objective: `forward(**batch)["logits"]` is one number a history [B].
        embedding: Of the codes, within `objective`.
        history: Tensors [1, L].
        steps: Points of the path, by the midpoint rule.

    Returns:
        [L].
    """
    whole: list[Tensor] = []

    def scale(_: nn.Module, __: object, output: Tensor) -> Tensor:
        points = (torch.arange(steps, device=output.device) + 0.5) / steps
        whole[:] = [output.detach(), (output.detach() * points[:, None, None]).requires_grad_()]
        return whole[1]

    handle = embedding.register_forward_hook(scale)
    try:
        with evaluating(objective):
            batch = {name: values.expand(steps, -1) for name, values in history.items()}
            total = objective(**batch)["logits"].sum()
    finally:
        handle.remove()
    codes, scaled = whole
    (slope,) = torch.autograd.grad(total, scaled)
    return (codes[0] * slope.mean(0)).sum(-1)
