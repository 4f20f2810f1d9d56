"""Task vectors: sparsify, elect, rescale, combine. One kernel for all methods of this family."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from galenic.merging.jobs import Job
from galenic.merging.ops import band_ranks, row_band
from galenic.merging.selection import Array, Cut, Taker, cuts
from galenic.merging.sources import BLOCK, size_of, spans

Cuts = Mapping[tuple[str, str], Cut]
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
    chosen = [i for i, part in enumerate(parts) if part.weight != 0]
    width = job.row if plan.granularity == "row" else 1
    old = job.buffer(width)
    if plan.alpha == 0 or not chosen:
        for start, stop in spans(job.size, width):
            yield job.read(job.base, start, stop, old)
        return
    made = _prepared(job, parts, plan, found, chosen)
    # Normalising divides by the weights of the user, not by what rescales.
    weights = [parts[i].weight for i in chosen]
    maskers = {i: make() if make else None for i, (make, _) in made.items()}
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
            factor = made[i][1]
            if factor != 1:
                delta.mul_(factor)
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
    sign.copy_(torch.from_numpy(total.numpy() >= 0)).mul_(2).sub_(1)
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
            divisor.copy_(torch.from_numpy(np.maximum(count, 1))).mul_(weights[0])
        else:
            divisor.add_(torch.from_numpy(divisor.numpy() == 0))
        total.div_(divisor)
    return sign.mul_(total)


def _mask(job: Job, index: int, delta: Tensor, masker: Masker) -> None:
    """Mask a piece in place, and count."""
    before = torch.dot(delta, delta).item()
    mask = masker(delta)
    # A product, not a choice: what is not finite must not vanish behind the mask.
    delta.mul_(torch.from_numpy(mask))
    after = torch.dot(delta, delta).item()
    kept, (old, new) = job.kept[index] or 0, job.squares[index] or (0.0, 0.0)
    job.kept[index] = kept + int(np.count_nonzero(mask))
    job.squares[index] = (old + before, new + after)


def _prepared(
    job: Job, parts: Sequence[Part], plan: Plan, found: Cuts | None, chosen: Sequence[int]
) -> dict[int, tuple[Callable[[], Masker] | None, float]]:
    """Of every task vector what makes its maskers, and its factor; of a large one side by side."""

    def prepare(i: int) -> tuple[Callable[[], Masker] | None, float]:
        maker = _maker(job, i, parts[i], plan, found)
        return maker, _factor(job, i, parts[i], plan, maker)

    reads = plan.sparsify == "band" or plan.rescale in ("l1", "l2")
    if job.size < BLOCK or len(chosen) < 2 or not reads:
        return {i: prepare(i) for i in chosen}
    with ThreadPoolExecutor(min(len(chosen), os.cpu_count() or 1)) as pool:
        return dict(zip(chosen, pool.map(prepare, chosen), strict=True))


def _maker(
    job: Job, index: int, part: Part, plan: Plan, found: Cuts | None
) -> Callable[[], Masker] | None:
    """Makes maskers, each for one pass over the tensor; None where everything is kept."""
    whole = part.density >= 1 and part.gamma == 0
    if plan.sparsify == "none" or whole or not job.base.shape or not job.size:
        return None
    if plan.sparsify == "random":
        return lambda: _random(generator(plan.seed, job.keys[index], job.drawn_as), part.density)
    if plan.granularity == "row":
        return lambda: _rows(job.row, part)
    if plan.granularity == "model":
        assert found is not None
        cut = found[job.keys[index], job.name]
        return lambda: _band(cut, None)
    first, last = band_ranks(job.size, part.density, part.gamma)
    outer, inner = cuts(
        job.magnitudes(index), job.size, (last, first), lambda step: job.sample(index, step)
    )
    return lambda: _band(outer, inner if first else None)


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
    limit = np.uint64(round(density * (1 << 32)))
    rest = np.empty(0, np.uint32)

    def mask(delta: Tensor) -> Array:
        nonlocal rest
        count = len(delta)
        drawn = bits.random_raw(max(count - len(rest) + 1, 0) // 2).astype("<u8", copy=False)
        values = drawn.view("<u4")
        if len(rest) or len(values) != count:
            values = np.concatenate([rest, values])
        rest = values[count:]
        found: Array = values[:count] < limit
        return found

    return mask


def generator(seed: int, key: str, name: str) -> np.random.SFC64:
    """Bits for one tensor of one model: the same whatever the order, the shards or the rest."""
    text = f"{seed}\0{key}\0{name}".encode()
    return np.random.SFC64(list(hashlib.sha256(text).digest()))


def _factor(
    job: Job, index: int, part: Part, plan: Plan, maker: Callable[[], Masker] | None
) -> float:
    if maker is None or plan.rescale == "none":
        return 1.0
    if plan.rescale == "expected":
        return 1 / part.density if part.density > 0 else 1.0
    order = 1 if plan.rescale == "l1" else 2
    before = after = 0.0
    masker = maker()
    old, room = job.buffer(job.row), job.buffer(job.row)
    for start, stop in spans(job.size, job.row):
        delta = job.delta(index, start, stop, job.read(job.base, start, stop, old), room)
        mask = masker(delta)
        before += delta.norm(order).item() ** order
        after += delta.mul_(torch.from_numpy(mask)).norm(order).item() ** order
    return (before / after) ** (1 / order) if before > 0 and after > 0 else 1.0


def model_cuts(jobs: Sequence[Job], densities: Mapping[str, float]) -> Cuts:
    """Cuts at the k-th magnitude of a whole task vector, all tensors together, as TIES trims.

    Of equal magnitudes the first is taken, in the order of the names of the tensors.

    Args:
        jobs: All tensors that are merged.
        densities: Share that is kept, by the name of the model.

    Returns:
        A cut for each tensor of each model, by (model, tensor).
    """
    found: dict[tuple[str, str], Cut] = {}
    ordered = sorted((job for job in jobs if job.base.shape), key=lambda job: job.name)
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
