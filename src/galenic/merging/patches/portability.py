"""How far the base has moved under a patch, and whether that touches what the patch does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.merging.patches.activations import ActivationDrift
from galenic.merging.patches.fitting import Naming
from galenic.merging.patches.spectrum import folded, largest
from galenic.merging.sources import Weights, close, size_of, working
from galenic.models.delta import Entry, LowRank

# Unrelated weights of like size are sqrt(2) of their norm apart.
FAR = 0.8


@dataclass(frozen=True)
class Drift:
    """What the update dTheta of the base did to one matrix, and what the patch dW does.

    Attributes:
        name: Of the tensor in the new base.
        norm: |theta|.
        drift: |dTheta| / |theta|, in the Frobenius norm.
        size: |dW| / |theta|.
        cosine: Of dW with dTheta; None where one of them is zero.
        share: Part of |dW|^2 that lies in the spaces of the r largest singular values of dTheta,
            |U^T dW V|^2 / |dW|^2, with the rank r of dW; None where dW has full rank.
    """

    name: str
    norm: float
    drift: float
    size: float
    cosine: float | None
    share: float | None


@dataclass(frozen=True)
class Portability:
    """What is known before a port, and what is written beside it.

    Attributes:
        patch: Fingerprint of the patch.
        old: Fingerprint of the base that it was made on; '' where that is unknown.
        new: Fingerprint of the base that it goes to.
        added: How many tensors get a difference.
        copied: Tensors that are put in whole, such as a new head.
        left_out: Targets that are not applied, with the reason.
        drift: |dTheta| / |theta| over all matrices that the patch changes; None without the old
            base.
        tensors: One row a matrix; empty without the old base.
        warnings: What a user should look at.
        activations: One row a patched layer; empty where no text was read.
        gain: Of the ported network over the bare new base, where both were scored; positive is
            better.
        accepted: Whether the gate lets it pass; so it does where there is none.
        reasons: Why not.
        other_base: Whether the old base that was named is not the one that the patch was made on,
            as far as the patch knows; the drift then says nothing.
    """

    patch: str
    old: str
    new: str
    added: int
    copied: tuple[str, ...]
    left_out: dict[str, str]
    drift: float | None
    tensors: tuple[Drift, ...]
    warnings: tuple[str, ...]
    activations: tuple[ActivationDrift, ...] = ()
    gain: float | None = None
    accepted: bool = True
    reasons: tuple[str, ...] = ()
    other_base: bool = False


def drift_of(name: str, old: Tensor, new: Tensor, entry: Entry) -> Drift:
    """Compare the update of one matrix with its patch.

    Args:
        name: Of the tensor.
        old: theta, of any shape.
        new: theta + dTheta, of the same shape.
        entry: dW.
    """
    kind = working(old.dtype, new.dtype)
    before = old.to(kind)
    moved, added = new.to(kind) - before, entry.dense().to(kind)
    whole, step, change = (x.norm().item() for x in (before, moved, added))
    both = step * change
    cosine = (moved * added).sum().item() / both if both > 0 else None
    share = None
    if isinstance(entry, LowRank) and both > 0:
        u, _, vh = largest(folded(moved), entry.a.shape[0])
        share = min(1.0, (u.T @ folded(added) @ vh.T).square().sum().item() / change**2)
    return Drift(name, whole, _ratio(step, whole), _ratio(change, whole), cosine, share)


def drifts(entries: Mapping[str, Entry], old: Weights, new: Weights) -> list[Drift]:
    """One row for every matrix of a patch, by the names of `new`; one matrix at a time in memory.

    Raises:
        WeightsError: If `old` lacks one, or has it in another shape; names it.
    """
    matrices = {name: entry for name, entry in entries.items() if len(entry.shape) > 1}
    naming = Naming.between(matrices, old.names())
    there, found = set(old.names()), []
    for name, entry in matrices.items():
        if naming(name) not in there or old.source(naming(name)).shape != entry.shape:
            raise WeightsError(
                f"The old base {old.label} has no '{name}' of shape {entry.shape}.",
                expected="the base that the patch was made on",
            )
        sources = (old.source(naming(name)), new.source(name))
        before, after = (s.flat(0, size_of(s)).reshape(s.shape) for s in sources)
        found.append(drift_of(name, before, after, entry))
        close(*sources)
    return found


def overall(rows: Sequence[Drift]) -> float | None:
    """|dTheta| / |theta| of all matrices together; None without rows."""
    if not rows:
        return None
    step = math.hypot(*(row.drift * row.norm for row in rows))
    whole = math.hypot(*(row.norm for row in rows))
    return _ratio(step, whole)


def far(rows: Sequence[Drift]) -> list[str]:
    """Warnings about a base that has moved as far as unrelated weights would."""
    drift = overall(rows)
    if drift is None:
        return []
    if drift >= FAR:
        return [
            f"The new base is {drift:.2f} of the old one's norm away from it: these weights look "
            "unrelated, and the patch will hardly do on them what it did."
        ]
    moved = [row for row in rows if row.drift >= FAR]
    if not moved:
        return []
    worst = max(moved, key=lambda row: row.drift)
    return [f"{len(moved)} matrices have moved by {FAR} of their norm or more: '{worst.name}' by "
            f"{worst.drift:.2f}."]  # fmt: skip


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else (math.inf if part > 0 else 0.0)
