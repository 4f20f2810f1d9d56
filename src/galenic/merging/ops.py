"""The arithmetic of merging, as pure functions on one tensor.

They compute in float32 (float64 for float64) and give back the type of their input. The engine
does the same piece by piece; these are for tensors that are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from galenic.merging.selection import Taker, cuts
from galenic.merging.sources import working

Granularity = Literal["tensor", "row"]
Convention = Literal["keep", "geometric"]
# Nearer to parallel than this, a great circle is a straight line; mergekit's value.
COLINEAR = 0.9995
_TINY = 1e-8


def task_vector(tuned: Tensor, base: Tensor) -> Tensor:
    """`tuned - base` in float32 or float64: a difference in bfloat16 would be rounded away."""
    dtype = working(tuned.dtype, base.dtype)
    return tuned.to(dtype) - base.to(dtype)


def band_ranks(count: int, density: float, gamma: float) -> tuple[int, int]:
    """First and last rank of the band, by falling magnitude: [int(gamma n), ... + int(density n)).

    Args:
        count: Entries n of the tensor, or of a row.
        density: Share that is kept.
        gamma: Share of the largest that is dropped.
    """
    top = int(gamma * count)
    return top, min(top + int(density * count), count)


def band(
    delta: Tensor, density: float, gamma: float = 0.0, granularity: Granularity = "tensor"
) -> Tensor:
    """The mask of Model Breadcrumbs: the middle of the magnitudes, by exact ranks.

    Davari and Belilovsky, arXiv 2312.06795, section 3. Of equal magnitudes the one with the lower
    index ranks higher. A scalar is kept. With `gamma=0` this is the trimming of TIES.

    Args:
        delta: A task vector of any shape.
        density: Share that is kept.
        gamma: Share of the largest that is dropped.
        granularity: Rank over the tensor, as the paper, or over each row of the last dimension, as
            the authors' code.

    Returns:
        Boolean mask of the same shape.
    """
    if delta.ndim == 0 or delta.numel() == 0:
        return torch.ones_like(delta, dtype=torch.bool)
    magnitudes = delta.detach().to(working(delta.dtype)).abs().cpu()
    if granularity == "row":
        flat = magnitudes.reshape(-1, magnitudes.shape[-1])
        return row_band(flat, density, gamma).reshape(delta.shape).to(delta.device)
    values = magnitudes.reshape(-1).numpy()
    first, last = band_ranks(len(values), density, gamma)
    outer, inner = cuts(lambda: [values], len(values), (last, first))
    mask = Taker(outer).take(values) & ~Taker(inner).take(values)
    return torch.from_numpy(mask).reshape(delta.shape).to(delta.device)


def row_band(magnitudes: Tensor, density: float, gamma: float) -> Tensor:
    """As :func:`band`, of each row of [rows, columns]."""
    first, last = band_ranks(magnitudes.shape[1], density, gamma)
    order = magnitudes.sort(dim=1, descending=True, stable=True).indices
    mask = torch.zeros(magnitudes.shape, dtype=torch.bool, device=magnitudes.device)
    return mask.scatter_(1, order[:, first:last], True)


def magnitude(delta: Tensor, density: float, granularity: Granularity = "tensor") -> Tensor:
    """The mask of TIES: the share `density` of largest magnitude; see :func:`band`."""
    return band(delta, density, 0.0, granularity)


def random_mask(shape: Sequence[int], density: float, generator: np.random.Generator) -> Tensor:
    """The mask of DARE: each entry is kept with probability `density`.

    Yu et al., "Language Models are Super Mario", ICML 2024, arXiv 2311.03099.

    Args:
        shape: Of the mask.
        density: Share that is kept, on average.
        generator: Drawn from once an entry, in order.
    """
    drawn = generator.random(math.prod(shape), dtype=np.float32) < density
    return torch.from_numpy(drawn).reshape(tuple(shape))


def rescale(delta: Tensor, mask: Tensor, norm: Literal["none", "l1", "l2"] = "none") -> Tensor:
    """The masked task vector, scaled back to the norm that it had; a zero norm leaves it."""
    masked = delta * mask
    if norm == "none":
        return masked
    order = 1 if norm == "l1" else 2
    before, after = (
        torch.linalg.vector_norm(x.double(), ord=order).item() for x in (delta, masked)
    )
    return masked * (before / after) if after > 0 else masked


def elect(deltas: Tensor) -> Tensor:
    """The sign election of TIES: which entries agree with the sign of their sum over the tasks.

    Yadav et al., "TIES-Merging", NeurIPS 2023, arXiv 2306.01708, section 3. A sum of zero counts as
    positive; an entry of zero agrees with nothing.

    Args:
        deltas: [tasks, ...], trimmed and weighted.

    Returns:
        Boolean mask of the same shape.
    """
    positive = deltas.sum(0) >= 0
    return torch.where(positive, deltas > 0, deltas < 0)


def combine(
    deltas: Tensor,
    weights: Sequence[float],
    *,
    consensus: bool = False,
    normalize: bool = False,
) -> Tensor:
    """The weighted sum of task vectors, of those that agree in sign where `consensus`.

    Args:
        deltas: [tasks, ...], in float32 or float64.
        weights: One a task.
        consensus: Elect a sign an entry (:func:`elect`).
        normalize: Divide by the sum of the weights that took part: with a consensus, the disjoint
            mean of TIES. Where they sum to zero the sum is left as it is.

    Returns:
        [...].
    """
    factors = torch.tensor(list(weights), dtype=deltas.dtype, device=deltas.device)
    factors = factors.reshape(-1, *[1] * (deltas.ndim - 1))
    weighted = deltas * factors
    if not consensus:
        total = weighted.sum(0)
        divisor = math.fsum(weights)
        return total / divisor if normalize and abs(divisor) > _TINY else total
    agree = elect(weighted)
    total = (weighted * agree).sum(0)
    if not normalize:
        return total
    divisors = (factors * agree).sum(0)
    return total / torch.where(divisors == 0, torch.ones_like(divisors), divisors)


def linear(tensors: Sequence[Tensor], weights: Sequence[float], normalize: bool = True) -> Tensor:
    """The weighted mean of tensors; with equal weights, a uniform model soup.

    Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482.

    Raises:
        ValueError: If the weights sum to zero and are to be normalised.
    """
    factors = normalized(weights) if normalize else [float(w) for w in weights]
    dtype = working(*(t.dtype for t in tensors))
    total = torch.zeros(tensors[0].shape, dtype=dtype, device=tensors[0].device)
    for tensor, factor in zip(tensors, factors, strict=True):
        if factor:
            total.add_(tensor.to(dtype), alpha=factor)
    return total.to(tensors[0].dtype)


def normalized(weights: Sequence[float]) -> list[float]:
    """Weights over their sum.

    Raises:
        ValueError: If that is zero.
    """
    total = math.fsum(weights)
    if abs(total) < _TINY:
        raise ValueError("the weights sum to zero and cannot be normalised")
    return [weight / total for weight in weights]


def interpolate(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """`(1 - alpha) base + alpha tuned`: WiSE-FT, and the LERP baseline of SLERP.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903.
    The ends are the parents, bit for bit.
    """
    return linear([base, tuned], [1 - alpha, alpha], normalize=False)


def slerp_factors(
    t: float,
    dot: float,
    norm_a: float,
    norm_b: float,
    convention: Convention = "keep",
    colinear: float = COLINEAR,
) -> tuple[float, float]:
    """The factors of both parents on the arc between them.

    Args:
        t: 0 is the first parent, 1 the second.
        dot: Of the flattened parents.
        norm_a: Of the first.
        norm_b: Of the second.
        convention: `keep` combines the parents as they are, as mergekit does. `geometric` combines
            their directions and gives the result the norm |a|^(1-t) |b|^t, as Lu et al.,
            arXiv 2409.03444.
        colinear: From this |cosine| on, and where a parent is zero, the arc is a straight line.
    """
    if t in (0.0, 1.0):
        return 1.0 - t, float(t)
    if norm_a <= _TINY or norm_b <= _TINY:
        return 1 - t, t
    cosine = max(-1.0, min(1.0, dot / (norm_a * norm_b)))
    if abs(cosine) > colinear:
        first, second = 1 - t, t
    else:
        angle = math.acos(cosine)
        first = math.sin((1 - t) * angle) / math.sin(angle)
        second = math.sin(t * angle) / math.sin(angle)
    if convention == "geometric":
        length = norm_a ** (1 - t) * norm_b**t
        return first * length / norm_a, second * length / norm_b
    return first, second


def slerp(
    a: Tensor,
    b: Tensor,
    t: float,
    convention: Convention = "keep",
    colinear: float = COLINEAR,
) -> Tensor:
    """Spherical interpolation of two tensors, flattened; see :func:`slerp_factors`.

    Both ends are the parents, bit for bit, also where these are parallel, opposite or zero.
    """
    flat_a, flat_b = a.double().reshape(-1), b.double().reshape(-1)
    dot, norm_a, norm_b = ((flat_a @ flat_b).item(), flat_a.norm().item(), flat_b.norm().item())
    return linear([a, b], slerp_factors(t, dot, norm_a, norm_b, convention, colinear), False)
