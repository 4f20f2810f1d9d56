"""A classifier under multiplicative noise that a policy draws for every picture.

Yavuz and Yang, "Policy Gradient-Driven Noise Mask", 2024, arXiv 2406.14568. The default is the
score-function estimator (REINFORCE; Williams, 1992) with one reward a picture; `logsumexp` is the
loss of the authors' code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional

from galenic.core.errors import ConfigError
from galenic.core.seeding import stream
from galenic.models.beta_policy import BetaPolicy, UniformPolicy
from galenic.objectives.classification import Classifier

Estimator = Literal["reinforce", "logsumexp"]
Baseline = Literal["none", "ema", "batch"]
# Log-parameters beyond this, and samples nearer to 0 and 1, have no finite density.
LIMIT, EDGE = 5.0, 1e-6
EMA = 0.9


class NoiseMasked(nn.Module):
    """A classifier whose pictures are multiplied by a mask that a policy drew.

    Normalised pictures are multiplied, as the authors do: under a mask of 0 a pixel has the mean
    of the data, and is not black. In evaluation one mask is drawn from the policy's base, the same
    for all pictures.

    Args:
        classifier: What the mask is drawn for.
        policy: Of the mask; it learns where its parameters train.
        key: The classifier's keyword of the pictures.
        kernel: Pixels of the blur, odd.
        sigma: Of the blur, in pixels.
        estimator: Of the policy's gradient.
        baseline: What is subtracted from a reward (reinforce): nothing, the running mean, or the
            mean of the other pictures of the batch.
        entropy: Weight of the policy's entropy a cell (reinforce).
        seed: Of the mask in evaluation.
    """

    seen: Tensor
    mean_cost: Tensor

    def __init__(
        self,
        classifier: Classifier,
        policy: BetaPolicy | UniformPolicy,
        *,
        key: str,
        kernel: int = 13,
        sigma: float = 6.0,
        estimator: Estimator = "reinforce",
        baseline: Baseline = "batch",
        entropy: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.classifier, self.policy, self.key = classifier, policy, key
        self.taps: Tensor
        self.register_buffer("taps", gaussian(kernel, sigma), persistent=False)
        self.estimator, self.baseline, self.entropy = estimator, baseline, entropy
        self.seed = seed
        self.register_buffer("mean_cost", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """The classifier's outputs on masked pictures; in training with the policy's loss.

        Args:
            labels: As the classifier takes them.
            **inputs: As the classifier takes them, pictures [B, C, H, W] among them.
        """
        pictures = inputs.pop(self.key)
        size = (pictures.shape[-2], pictures.shape[-1])
        if not self.training:
            masked = pictures * self.mask(self.common(), size)
            return self.classifier(labels=labels, **{self.key: masked}, **inputs)
        logs = self.policy(pictures)
        cells = draw(logs)
        masked = pictures * self.mask(cells, size)
        outputs = self.classifier(labels=labels, **{self.key: masked}, **inputs)
        if labels is not None and logs.requires_grad:
            costs = self.classifier.costs(outputs["logits"].detach(), labels)
            outputs["loss"] = self._loss(outputs["loss"], costs, logs, cells)
        return outputs

    def mask(self, cells: Tensor, size: tuple[int, int]) -> Tensor:
        """Masks [B, 1, *size] in (0, 1) of cells [B, grid * grid]."""
        side = round(cells.shape[-1] ** 0.5)
        wide = functional.interpolate(cells.view(-1, 1, side, side), size, mode="nearest")
        return blur(wide, self.taps)

    def common(self) -> Tensor:
        """Cells [1, grid * grid] drawn from the base of the policy, the same at every call."""
        base = self.policy.base
        with torch.random.fork_rng([base.device] if base.is_cuda else []):
            torch.manual_seed(stream(self.seed, "noise mask"))
            return draw(base[None])

    def _loss(self, loss: Tensor, costs: Tensor, logs: Tensor, cells: Tensor) -> Tensor:
        densities = log_density(logs, cells)
        if self.estimator == "logsumexp":
            factor = densities.logsumexp(dim=-1).mean()
            # The product of both, but that a negative factor never turns the classifier round.
            return factor.detach().clamp_min(0) * loss + factor * loss.detach()
        gains = costs - self._baseline(costs)
        policy = (gains * densities.sum(dim=-1)).mean()
        if self.entropy:
            policy = policy - self.entropy * _beta(logs).entropy().mean()
        return loss + policy

    def _baseline(self, costs: Tensor) -> Tensor:
        """What to subtract from each cost [B]; it never depends on that picture's own mask."""
        if self.baseline == "batch":
            return (costs.sum() - costs) / (len(costs) - 1) if len(costs) > 1 else costs
        if self.baseline == "none":
            return torch.zeros_like(costs)
        before = self.mean_cost / (1 - EMA**self.seen).clamp_min(EDGE)
        self.mean_cost.lerp_(costs.mean(), 1 - EMA)
        self.seen += 1
        return before.expand_as(costs)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the classifier's activations in the backward pass."""
        self.classifier.gradient_checkpointing_enable()


def _beta(logs: Tensor) -> Beta:
    """Of log-parameters [B, 2, N]."""
    first, second = logs.clamp(-LIMIT, LIMIT).exp().unbind(dim=1)
    return Beta(first, second, validate_args=False)


def draw(logs: Tensor) -> Tensor:
    """Samples [B, N] of log-parameters [B, 2, N], inside (0, 1); no gradient passes."""
    with torch.no_grad():
        return _beta(logs).sample().clamp(EDGE, 1 - EDGE)


def log_density(logs: Tensor, cells: Tensor) -> Tensor:
    """Log-density [B, N] of cells [B, N] under log-parameters [B, 2, N]."""
    return _beta(logs).log_prob(cells)


def gaussian(kernel: int, sigma: float) -> Tensor:
    """Taps [kernel] of a Gaussian, of sum 1.

    Raises:
        ConfigError: If `kernel` is even.
    """
    if kernel % 2 == 0:
        raise ConfigError(
            f"A blur of {kernel} pixels has no middle.", expected="an odd number of pixels"
        )
    places = torch.arange(kernel) - kernel // 2
    return torch.softmax(-(places**2) / (2 * sigma**2), dim=0)


def blur(images: Tensor, taps: Tensor) -> Tensor:
    """Images [B, 1, H, W] blurred along both sides; the edges are mirrored."""
    half = len(taps) // 2
    padded = functional.pad(images, (half,) * 4, mode="reflect")
    rows = functional.conv2d(padded, taps.view(1, 1, -1, 1))
    return functional.conv2d(rows, taps.view(1, 1, 1, -1))
