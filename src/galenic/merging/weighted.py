"""Weighted sums of whole tensors, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from galenic.merging.jobs import Job
from galenic.merging.sources import Source, spans


def weighted(job: Job, sources: Sequence[Source], factors: Sequence[float]) -> Iterator[Tensor]:
    """The sum of `sources` times `factors`; a source with the factor 0 is not read.

    Yields:
        Flat pieces in the working type.
    """
    used = [(s, f) for s, f in zip(sources, factors, strict=True) if f != 0]
    total, room = job.buffer(), job.buffer()
    for start, stop in spans(job.size):
        if not used:
            yield total[: stop - start].zero_()
            continue
        (first, factor), *rest = used
        piece = job.read(first, start, stop, total)
        if factor != 1:
            piece.mul_(factor)
        for source, factor in rest:
            piece.add_(job.read(source, start, stop, room), alpha=factor)
        yield piece


def inner(job: Job, a: Source, b: Source) -> tuple[float, float, float]:
    """<a, b>, |a| and |b| of two sources, flattened."""
    first, second = job.buffer(), job.buffer()
    dot = square_a = square_b = 0.0
    for start, stop in spans(job.size):
        x, y = job.read(a, start, stop, first), job.read(b, start, stop, second)
        dot += x.dot(y).item()
        square_a += x.dot(x).item()
        square_b += y.dot(y).item()
    return dot, square_a**0.5, square_b**0.5
