"""Which patches are seen and which are hidden: drawn from a generator, then applied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """Of a batch; the same number of patches is hidden in every sample.

    Attributes:
        seen: Places of the visible patches [B, k].
        hidden: Places of the others [B, L - k].
    """

    seen: Tensor
    hidden: Tensor


def visible(count: int, ratio: float) -> int:
    """How many of `count` patches are seen where the share `ratio` is hidden."""
    return int(count * (1 - ratio))


def noise(draws: Tensor, count: int, each: int = 1) -> Tensor:
    """Uniform numbers [B * each, count], each row from the generator that its sample names.

    Args:
        draws: A seed a sample [B].
        count: Patches.
        each: Rows a sample: one a slice of a volume.
    """
    generator = torch.Generator()
    rows = [
        torch.rand(each, count, generator=generator.manual_seed(seed)) for seed in draws.tolist()
    ]
    return torch.cat(rows).to(draws.device)


def uniform(noise: Tensor, ratio: float) -> Mask:
    """The patches with the least noise are seen (He et al., 2022, appendix A.1).

    Args:
        noise: [B, L].
        ratio: Share that is hidden.
    """
    seen = visible(noise.shape[1], ratio)
    order = noise.argsort(dim=1)
    return Mask(order[:, :seen], order[:, seen:])
