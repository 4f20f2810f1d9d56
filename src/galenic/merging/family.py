"""Task vectors: sparsify, elect, rescale, combine. One kernel for all methods of this family."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from galenic.merging.jobs import Job
from galenic.merging.ops import band_ranks, row_band
from galenic.merging.selection import Array, Cut, Taker, cuts
from galenic.merging.sources import size_of, spans

Cuts = Mapping[tuple[str, str], Cut]
# So many entries are drawn at once: a processor's nearest cache holds them.
_DRAWN = 1 << 15
# Masks the pieces of one task vector in order: delta -> boolean array.
Masker = Callable[[Tensor], Array]


@dataclass(frozen=True)
class Part:
    """What one task vector is given.

    Attributes:
        weight: Its factor.
        density: Share of its entries that is kept.
        gamma: Share of its largest entries that is dropped.
    """

    weight: float
    density: float = 1.0
    gamma: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How task vectors are put together.

    Attributes:
        sparsify: `none`; `band`, by magnitude; or `random`, as DARE.
        granularity: What a band ranks over; `model` needs the cuts of :func:`model_cuts`.
        rescale: `none`; `expected`, by 1 / density; `l1` or `l2`, to the norm before.
        consensus: Elect signs.
        normalize: Divide by the weights that took part.
        alpha: Factor of the sum.
        seed: Of what is drawn.
    """

    sparsify: Literal["none", "band", "random"] = "none"
    granularity: Literal["tensor", "row", "model"] = "tensor"
    rescale: Literal["none", "expected", "l1", "l2"] = "none"
    consensus: bool = False
    normalize: bool = False
    alpha: float = 1.0
    seed: int = 0


def mix(job: Job, parts: Sequence[Part], plan: Plan, found: Cuts | None = None) -> Iterator[Tensor]:
    """The base plus the combined task vectors, as flat pieces in the working type.

    Args:
        job: The tensor.
        parts: One a parent.
        plan: How.
        found: Cuts that were found over the whole model.

    Yields:
        Pieces of base + alpha * combine(rescale(sparsify(parent - base))).
    """
    if job.statistic:
        parts, plan = _averaging(parts, plan)
        job.averaged = True
    chosen = [i for i, part in enumerate(parts) if part.weight != 0]
    width = job.row if plan.granularity == "row" else 1
    old = job.buffer(width)
    if plan.alpha == 0 or not chosen:
        for start, stop in spans(job.size, width):
            yield job.read(job.base, start, stop, old)
        return
    maskers = {i: _masker(job, i, parts[i], plan, found) for i in chosen}
    factors = dict.fromkeys(chosen, 1.0)
    for i, masker in maskers.items():
        if masker is not None and plan.rescale == "expected":
            factors[i] = 1 / parts[i].density if parts[i].density > 0 else 1.0
        elif masker is not None and plan.rescale != "none":
            order = 1 if plan.rescale == "l1" else 2
            maskers[i], factors[i] = _to_norm(job, i, masker, order, width)
    # Normalising divides by the weights of the user, not by what rescales.
    weights = [parts[i].weight for i in chosen]
    rows = torch.empty(len(chosen), len(old), dtype=job.dtype)
    room = torch.empty(3, len(old), dtype=job.dtype) if plan.consensus else rows
    for start, stop in spans(job.size, width):
        count = stop - start
        base = job.read(job.base, start, stop, old)
        for row, i in enumerate(chosen):
            delta = job.delta(i, start, stop, base, rows[row])
            masker = maskers[i]
            if masker is not None:
                _mask(job, i, delta, masker)
            if factors[i] != 1:
                delta.mul_(factors[i])
        deltas = rows[:, :count]
        if plan.consensus:
            for delta, weight in zip(deltas, weights, strict=True):
                if weight != 1:
                    delta.mul_(weight)
            mixed = _agreeing(deltas, weights, plan.normalize, room)
            yield base.add_(mixed, alpha=plan.alpha)
            continue
        total = math.fsum(weights) if plan.normalize else 1.0
        scale = plan.alpha / (total if abs(total) > 1e-8 else 1.0)
        for delta, weight in zip(deltas, weights, strict=True):
            base.add_(delta, alpha=weight * scale)
        yield base


def _averaging(parts: Sequence[Part], plan: Plan) -> tuple[list[Part], Plan]:
    """The weighted mean of whole task vectors, or their sum where the weights are less than 1.

    A sum of several, or of what a mask left and scaled, takes a variance below zero, and the network
    then gives NaN. This lies between the parents where the weights are positive and alpha at most 1.
    """
    total = math.fsum(abs(part.weight) for part in parts)
    # A divisor of its own, so that a negative weight moves away from its model here too.
    total = total or 1.0 if plan.normalize else max(total, 1.0)
    return [Part(part.weight / total) for part in parts], Plan(alpha=plan.alpha)


def _agreeing(deltas: Tensor, weights: Sequence[float], normalize: bool, room: Tensor) -> Tensor:
    """What :func:`galenic.merging.ops.combine` gives with a consensus, in place and without copies.

    Args:
        deltas: [tasks, n], trimmed and weighted; overwritten.
        weights: One a task.
        normalize: Divide by the weights that agree.
        room: [3, at least n], overwritten; the first row holds the result.
    """
    sign, total, divisor = (row[: deltas.shape[1]] for row in room)
    torch.sum(deltas, 0, out=total)
    # From truths and small numbers to floats numpy is several times as fast as torch.
    np.copyto(sign.numpy(), total.numpy() >= 0)
    sign.mul_(2).sub_(1)
    total.zero_()
    equal = len(set(weights)) == 1
    count = np.zeros(len(total), np.uint16 if len(weights) > 255 else np.uint8)
    divisor.zero_()
    for delta, weight in zip(deltas, weights, strict=True):
        # Of the elected sign, and otherwise zero.
        total.add_(delta.mul_(sign).clamp_(min=0))
        if normalize and equal:
            np.add(count, delta.numpy() > 0, out=count)
        elif normalize:
            divisor.add_(delta.sign_(), alpha=weight)
    if normalize:
        if equal:
            np.copyto(divisor.numpy(), np.maximum(count, 1, out=count))
            divisor.mul_(weights[0])
        else:
            divisor.add_(torch.from_numpy(divisor.numpy() == 0))
        total.div_(divisor)
    return sign.mul_(total)


def _mask(job: Job, index: int, delta: Tensor, masker: Masker) -> None:
    """Mask a piece in place, and count."""
    before = torch.dot(delta, delta).item()
    mask = masker(delta)
    _keep(delta, mask)
    after = torch.dot(delta, delta).item()
    kept, (old, new) = job.kept[index] or 0, job.squares[index] or (0.0, 0.0)
    job.kept[index] = kept + int(np.count_nonzero(mask))
    job.squares[index] = (old + before, new + after)


def _keep(delta: Tensor, mask: Array) -> Tensor:
    """Zero what is not kept, in place."""
    values = delta.numpy()
    # A product, not a choice: what is not finite must not vanish behind the mask.
    with np.errstate(invalid="ignore"):
        np.multiply(values, mask, out=values)
    return delta


def _masker(job: Job, index: int, part: Part, plan: Plan, found: Cuts | None) -> Masker | None:
    """For one pass over the tensor; None where everything is kept."""
    whole = part.density >= 1 and part.gamma == 0
    if plan.sparsify == "none" or whole or not job.base.shape or not job.size:
        return None
    if plan.sparsify == "random":
        return _random(generator(plan.seed, job.keys[index], job.drawn_as), part.density)
    if plan.granularity == "row":
        return _rows(job.row, part)
    if plan.granularity == "model":
        assert found is not None
        return _band(found[job.keys[index], job.name], None)
    first, last = band_ranks(job.size, part.density, part.gamma)
    outer, inner = cuts(
        job.magnitudes(index), job.size, (last, first), lambda step: job.sample(index, step)
    )
    return _band(outer, inner if first else None)


def _band(outer: Cut, inner: Cut | None) -> Masker:
    take = Taker(outer)
    drop = None if inner is None else Taker(inner)
    room = np.empty(0, np.float32)

    def mask(delta: Tensor) -> Array:
        nonlocal room
        values = delta.numpy()
        if room.shape != values.shape or room.dtype != values.dtype:
            room = np.empty_like(values)
        np.abs(values, out=room)
        taken = take.take(room)
        if drop is not None:
            taken &= ~drop.take(room)
        return taken

    return mask


def _rows(width: int, part: Part) -> Masker:
    def mask(delta: Tensor) -> Array:
        found: Array = row_band(delta.abs().reshape(-1, width), part.density, part.gamma).numpy()
        return found.reshape(-1)

    return mask


def _random(bits: np.random.SFC64, density: float) -> Masker:
    # Whole numbers of 32 bits: no density is finer, and no float is made of them.
    limit = np.uint32(min(round(density * (1 << 32)), (1 << 32) - 1))
    rest = np.empty(0, np.uint32)

    def mask(delta: Tensor) -> Array:
        nonlocal rest
        found = np.empty(len(delta), bool)
        for start in range(0, len(found), _DRAWN):
            part = found[start : start + _DRAWN]
            drawn = bits.random_raw(max(len(part) - len(rest) + 1, 0) // 2)
            values = drawn.astype("<u8", copy=False).view("<u4")
            if len(rest) or len(values) != len(part):
                values = np.concatenate([rest, values])
            rest = values[len(part) :]
            np.less(values[: len(part)], limit, out=part)
        return found

    return mask


def generator(seed: int, key: str, name: str) -> np.random.SFC64:
    """Bits for one tensor of one model: the same whatever the order, the shards or the rest."""
    text = f"{seed}\0{key}\0{name}".encode()
    return np.random.SFC64(list(hashlib.sha256(text).digest()))


def _to_norm(job: Job, index: int, masker: Masker, order: int, width: int) -> tuple[Masker, float]:
    """A masker that repeats the masks of `masker`, and what restores the l1 or l2 norm after them."""

    def size(delta: Tensor) -> float:
        return float(delta.abs_().sum() if order == 1 else torch.dot(delta, delta))

    before = after = 0.0
    masks: list[Array] = []
    old, room = job.buffer(width), job.buffer(width)
    for start, stop in spans(job.size, width):
        delta = job.delta(index, start, stop, job.read(job.base, start, stop, old), room)
        mask = masker(delta)
        masks.append(np.packbits(mask))
        before += size(delta)
        after += size(_keep(delta, mask))
    kept = iter(masks)
    factor = before / after if before > 0 and after > 0 else 1.0

    def again(delta: Tensor) -> Array:
        return np.unpackbits(next(kept), count=len(delta)).view(bool)

    return again, factor ** (1 / order)


def model_cuts(jobs: Sequence[Job], densities: Mapping[str, float]) -> Cuts:
    """Cuts at the k-th magnitude of a whole task vector, all tensors together, as TIES trims.

    Of equal magnitudes the first is taken, in the order of the names of the tensors.

    Args:
        jobs: All tensors that are merged; running statistics are not ranked.
        densities: Share that is kept, by the name of the model.

    Returns:
        A cut for each tensor of each model, by (model, tensor).
    """
    found: dict[tuple[str, str], Cut] = {}
    ranked = [job for job in jobs if job.base.shape and not job.statistic]
    ordered = sorted(ranked, key=lambda job: job.name)
    total = sum(size_of(job.base) for job in ordered)
    for key, density in densities.items():
        index = {job.name: job.keys.index(key) for job in ordered}

        def pieces(index: Mapping[str, int] = index) -> Iterable[Array]:
            for job in ordered:
                yield from job.magnitudes(index[job.name])()

        def sample(step: int, index: Mapping[str, int] = index) -> Array:
            return np.concatenate([job.sample(index[job.name], step) for job in ordered])

        (cut,) = cuts(pieces, total, [int(density * total)], sample)
        left = cut.ties
        for job in ordered:
            share = cut
            if cut.ties != cut.equal:
                made = job.magnitudes(index[job.name])()
                equal = sum(int(np.count_nonzero(piece == cut.value)) for piece in made)
                share = Cut(cut.value, min(left, equal), equal)
                left -= share.ties
            found[key, job.name] = share
    return found
