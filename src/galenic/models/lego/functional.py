"""The maths of MM-Lego on plain tensors: frequencies, merged latents, merged heads.

Hemker, Simidjievski, Jamnik, "Multimodal Lego", ICLR 2025, arXiv 2405.19950. A latent is
[B, l_c, l_d]; its frequencies are those along l_c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

MergeMethod = Literal["harmonic", "mean", "sum", "product"]
HeadMethod = Literal["slerp", "linear", "ot"]
# Below this length a sum of unit vectors points nowhere.
NOWHERE = 1e-6


def to_frequency(latent: Tensor) -> Tensor:
    """FFT along the latents: [B, l_c, l_d], real or complex, to complex."""
    return torch.fft.fft(latent, dim=1)


def from_frequency(latent: Tensor) -> Tensor:
    """The inverse of :func:`to_frequency`; stays complex."""
    return torch.fft.ifft(latent, dim=1)


def normalise(latent: Tensor, eps: float = 1e-12) -> Tensor:
    """`latent` with norm one along its latents, per channel; zeros stay zeros.

    Args:
        latent: [B, l_c, l_d], real or complex.
        eps: Smallest norm that is divided by.
    """
    return latent / torch.linalg.vector_norm(latent, dim=1, keepdim=True).clamp_min(eps)


def real_frequency(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Real part of the FFT of real sequences, each over its own length.

    A padded sequence has other frequencies than the same sequence alone, so that a batch would
    decide what a sample is; with a mask every sample keeps those of its own length.

    Args:
        states: [B, N, D].
        mask: [B, N], true where there is a state; None where all are whole.

    Returns:
        [B, N, D]; zeros behind the end of a sequence.
    """
    if mask is None:
        return torch.fft.fft(states, dim=1).real
    mask = mask.bool()
    places = (mask.cumsum(dim=1) - 1).clamp_min(0)
    lengths = mask.sum(dim=1).clamp_min(1).view(-1, 1, 1)
    # Whole turns are taken off while the numbers are integers, where that is exact.
    turns = (places.unsqueeze(2) * places.unsqueeze(1)) % lengths
    cosines = torch.cos(2 * torch.pi * turns.to(states.dtype) / lengths)
    both = mask.unsqueeze(2) & mask.unsqueeze(1)
    return (cosines * both) @ states


def merge_latents(
    latents: Sequence[Tensor], weights: Sequence[float], method: MergeMethod = "harmonic"
) -> Tensor:
    """One latent of several, element by element.

    A latent of weight 0 is left out; a single one comes back as it is.

    Args:
        latents: Each [B, l_c, l_d], complex (or real without frequencies).
        weights: One a latent, with sum 1. `sum` and `product` take every latent once.
        method: `harmonic` (weighted harmonic mean of magnitudes, circular mean of phases, the
            rule of the paper), `mean`, `sum` or `product`.
    """
    kept = [(x, w) for x, w in zip(latents, weights, strict=True) if w > 0]
    if len(kept) == 1:
        return kept[0][0]
    stacked = torch.stack([x for x, _ in kept])
    if method == "sum":
        return stacked.sum(dim=0)
    if method == "product":
        return stacked.prod(dim=0)
    share = stacked.abs().new_tensor([w for _, w in kept]).view(-1, 1, 1, 1)
    if method == "mean":
        return (share * stacked).sum(dim=0)
    merged = harmonic_magnitude(stacked.abs(), share) * circular_mean(stacked, share)
    return merged if stacked.is_complex() else merged.real


def harmonic_magnitude(magnitudes: Tensor, share: Tensor) -> Tensor:
    """1 / sum_i (w_i / m_i); zero where one of the magnitudes is zero.

    Args:
        magnitudes: [M, ...], not negative.
        share: Weights that broadcast against `magnitudes`, with sum 1 over the first axis.
    """
    none = magnitudes == 0
    inverse = (share / magnitudes.masked_fill(none, 1.0)).sum(dim=0)
    return (1.0 / inverse).masked_fill(none.any(dim=0), 0.0)


def circular_mean(values: Tensor, share: Tensor) -> Tensor:
    """The weighted mean direction of phases, as complex numbers of length one.

    Phases are averaged on the circle, so that pi and -pi are the same. Where they cancel there
    is no mean, and the phase is 0. An element that is zero has no phase and no say.

    Args:
        values: [M, ...], complex or real.
        share: Weights that broadcast against `values`.
    """
    length = values.abs()
    units = values / length.masked_fill(length == 0, 1.0)
    total = (share * units).sum(dim=0)
    total = total if total.is_complex() else torch.complex(total, torch.zeros_like(total))
    size = total.abs()
    lost = size < NOWHERE
    return torch.where(lost, torch.ones_like(total), total / size.masked_fill(lost, 1.0))


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From `a` (t = 0) to `b` (t = 1) along the great circle, the norm in a straight line.

    Shoemake, SIGGRAPH 1985, on directions. Tensors that have no direction (zeros) or no great
    circle between them (equal or opposite ones) go in a straight line.

    Args:
        a: Any shape; taken as one vector.
        b: As `a`.
        t: 0 to 1.
    """
    return spherical_mean([a, b], [1.0 - t, t])


def spherical_mean(tensors: Sequence[Tensor], weights: Sequence[float], steps: int = 50) -> Tensor:
    """The weighted Frechet mean of directions, with the weighted mean of norms.

    Of two tensors this is :func:`slerp`; of more it is its extension that depends on no order
    (Buss and Fillmore, ACM TOG 2001).

    Args:
        tensors: Of one shape, each taken as one vector.
        weights: One a tensor, with sum 1.
        steps: Most iterations; each of them shrinks the error by more than half.
    """
    kept = [(x, w) for x, w in zip(tensors, weights, strict=True) if w > 0]
    first = kept[0][0]
    if all(torch.equal(first, x) for x, _ in kept[1:]):
        return first.clone()
    flat = torch.stack([x.double().flatten() for x, _ in kept])
    share = flat.new_tensor([w for _, w in kept]).unsqueeze(1)
    norms = flat.norm(dim=1, keepdim=True)
    mean = (share * flat / norms.clamp_min(1e-300)).sum(dim=0)
    units = flat / norms.clamp_min(1e-300)
    straight = bool((norms == 0).any()) or float(mean.norm()) < NOWHERE
    if not straight:
        mean = mean / mean.norm()
        straight = bool((units @ mean < -1 + NOWHERE).any())
    if straight:
        return (share * flat).sum(dim=0).to(first.dtype).view_as(first)
    for _ in range(steps):
        step = (share * _tangents(mean, units)).sum(dim=0)
        size = step.norm()
        if float(size) < 1e-14:
            break
        mean = mean * size.cos() + step / size * size.sin()
        mean = mean / mean.norm()
    merged = (share * norms).sum() * mean
    return merged.to(first.dtype).view_as(first)


def _tangents(mean: Tensor, units: Tensor) -> Tensor:
    """The logarithm of each unit vector [M, D] at `mean` [D]."""
    along = (units @ mean).unsqueeze(1)
    across = units - along * mean
    size = across.norm(dim=1, keepdim=True)
    return across / size.clamp_min(1e-300) * torch.atan2(size, along)


def merge_states(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float], method: HeadMethod = "slerp"
) -> dict[str, Tensor]:
    """The heads' tensors, merged name by name.

    Args:
        states: Tensors by name, the same names and shapes in each.
        weights: One a head, with sum 1.
        method: `slerp`, else a weighted mean.
    """
    merged = {}
    for name, first in states[0].items():
        tensors = [state[name] for state in states]
        if not first.is_floating_point():
            merged[name] = first.clone()
        elif method == "slerp":
            merged[name] = spherical_mean(tensors, weights)
        else:
            kept = [(x, w) for x, w in zip(tensors, weights, strict=True) if w > 0]
            merged[name] = sum((w * x for x, w in kept), torch.zeros_like(first))
    return merged


def transport(reference: Tensor, other: Tensor) -> Tensor:
    """The order of the rows of `other` that brings them nearest to those of `reference`.

    Between two sets of as many points of equal mass the optimal transport is a permutation.

    Args:
        reference: [n, k].
        other: [n, k].

    Returns:
        Long [n]: row i of `reference` is met by row `order[i]` of `other`.
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(reference.double(), other.double()).cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(cost)[1]).to(reference.device)
