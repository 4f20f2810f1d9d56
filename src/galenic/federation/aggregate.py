"""From the updates of many clients to one: stacking, averaging, padding; compression; error.

Stacking is FLoRA ("FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations", NeurIPS 2024, arXiv 2409.05976): `A = [p_1 s_1 A_1; ...]`, `B = [B_1, ...]`, so that
`B A` is `sum_k p_k s_k B_k A_k`. Averaging is FedIT (Zhang et al., arXiv 2305.05644), whose
`(sum p_k B_k)(sum p_k A_k)` has cross terms between clients; on dense tensors it is FedAvg.
Padding is averaging at the highest rank, as in HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432).
Everything is computed in float32, compression in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from galenic.core.errors import WeightsError
from galenic.federation.update import Pair, State, Update, check_all, pairs_of, part_of

Method = Literal["stack", "average", "pad"]
Weighting = Literal["samples", "uniform"]


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What is sent back to the clients.

    Attributes:
        state: As of an :class:`Update`; whole tensors are averages.
        rank: Of its factors; 0 where it has none.
        scale: Factor of its product `B A`.
    """

    state: State
    rank: int
    scale: float


def shares(updates: Sequence[Update], weighting: Weighting = "samples") -> list[float]:
    """p_k of these clients, which sum to 1."""
    counts = [update.samples if weighting == "samples" else 1 for update in updates]
    return [count / sum(counts) for count in counts]


def aggregate(
    updates: Sequence[Update], method: Method = "stack", weighting: Weighting = "samples"
) -> Aggregate:
    """Put updates together; their order does not matter.

    Args:
        updates: One a client.
        method: `stack` (exact, any ranks and scalings), `average` (equal ranks) or `pad`.
        weighting: p_k by samples, or equal.

    Raises:
        DataError: If there are none, a client is there twice, or has no samples.
        WeightsError: If an update does not fit the others or is not finite, or ranks or scalings
            differ where they may not; names client and tensor.
    """
    ordered = check_all(updates)
    weights = shares(ordered, weighting)
    if method == "stack":
        return _stacked(ordered, weights)
    _require_equal(ordered, ranks=method == "average")
    return _averaged(ordered, weights)


def joined(first: Aggregate, second: Aggregate) -> Aggregate:
    """Two stacks as one, whose product is the sum of theirs; whole tensors are of the second."""
    if first.rank == 0 or second.rank == 0:
        filled = first if second.rank == 0 else second
        return Aggregate({**filled.state, **_whole(second.state)}, filled.rank, filled.scale)
    parts, rank = [(part.state, part.scale) for part in (first, second)], first.rank + second.rank
    return Aggregate(_side_by_side(parts, [0.0, 1.0], rank), rank, 1.0)


def compress(given: Aggregate, rank: int) -> Aggregate:
    """The nearest product of rank `rank` or less, for every layer (Eckart and Young, 1936).

    The error is the norm of the singular values that are left out: none where the product has no
    more than `rank`. Cost is linear in the rank of `given`: two QR, and an SVD of their product.

    Raises:
        WeightsError: If `rank` is not positive.
    """
    if rank < 1:
        raise WeightsError(f"A stack cannot be compressed to rank {rank}.", expected="1 or more")
    if given.rank <= rank:
        return given
    state = dict(given.state)
    for pair in pairs_of(state).values():
        a, b = state[pair.a].double(), state[pair.b].double()
        left, inner = torch.linalg.qr(b.flatten(1))
        right, outer = torch.linalg.qr(a.flatten(1).T)
        u, values, v = torch.linalg.svd(given.scale * inner @ outer.T, full_matrices=False)
        kept = min(rank, len(values))
        root = values[:kept].sqrt()
        # A layer narrower than `rank` is filled up with zeros: one rank for all layers.
        new_a, new_b = a.new_zeros(rank, right.shape[0]), b.new_zeros(len(b), rank)
        new_a[:kept] = root[:, None] * (v[:kept] @ right.T)
        new_b[:, :kept] = (left @ u[:, :kept]) * root
        state[pair.a] = new_a.reshape(rank, *a.shape[1:]).float()
        state[pair.b] = new_b.reshape(len(b), rank, *b.shape[2:]).float()
    for name, value in given.state.items():
        if part_of(name) == "bias":
            state[name] = given.scale * value
    return Aggregate(state, rank, 1.0)


def truncated(state: State, rank: int) -> dict[str, Tensor]:
    """The first `rank` rows of every A and columns of every B: what a weaker client takes."""
    cut = {"A": lambda t: t[:rank], "B": lambda t: t[:, :rank]}
    return {
        name: cut[part](value).contiguous() if (part := part_of(name)) in cut else value
        for name, value in state.items()
    }


def continued(given: Aggregate, sent: Aggregate) -> Aggregate:
    """`given` at the rank of `sent`: rows of A and columns of B that nobody trained stay as sent."""
    if given.rank >= sent.rank:
        return given
    state = dict(given.state)
    for pair in pairs_of(state).values():
        for name, axis in ((pair.a, 0), (pair.b, 1)):
            rest = sent.state[name].narrow(axis, given.rank, sent.rank - given.rank)
            state[name] = torch.cat([state[name], rest.float()], dim=axis)
    return Aggregate(state, sent.rank, given.scale)


def widest(state: State) -> int:
    """Highest rank that a product of these layers can have."""
    rooms = [min(len(state[pair.b]), state[pair.a][0].numel()) for pair in pairs_of(state).values()]
    return max(rooms, default=0)


def product(given: Aggregate | Update, pair: Pair) -> Tensor:
    """`scale * B A` [o, d] of one layer, in float64."""
    a, b = given.state[pair.a].double(), given.state[pair.b].double()
    return given.scale * (b.flatten(1) @ a.flatten(1))


def error(updates: Sequence[Update], given: Aggregate, weighting: Weighting = "samples") -> float:
    """`|given - exact|_F / |exact|_F` over all layers, exact being `sum_k p_k s_k B_k A_k`.

    0 where there are no factors, or the exact sum is 0. One layer is held at a time.
    """
    weights = shares(updates, weighting)
    wrong = whole = 0.0
    for pair in pairs_of(given.state).values():
        found = product(given, pair)
        exact = torch.zeros_like(found)
        for update, weight in zip(updates, weights, strict=True):
            exact.add_(product(update, pair), alpha=weight)
        wrong += float((found - exact).square().sum())
        whole += float(exact.square().sum())
    return (wrong / whole) ** 0.5 if whole else 0.0


def _stacked(updates: Sequence[Update], weights: Sequence[float]) -> Aggregate:
    parts = [(u.state, weight * u.scale) for u, weight in zip(updates, weights, strict=True)]
    rank = sum(update.rank for update in updates)
    return Aggregate(_side_by_side(parts, weights, rank), rank, 1.0)


def _side_by_side(
    parts: Sequence[tuple[State, float]], weights: Sequence[float], rank: int
) -> dict[str, Tensor]:
    """Factors beside each other, each product times its factor; whole tensors by `weights`."""
    state = {}
    for name in parts[0][0]:
        part, values = part_of(name), [found[name] for found, _ in parts]
        if part in ("A", "B"):
            state[name] = _concatenated(name, parts, rank)
        else:
            factors = [factor for _, factor in parts] if part == "bias" else weights
            state[name] = _weighted(values, factors)
    return state


def _averaged(updates: Sequence[Update], weights: Sequence[float]) -> Aggregate:
    rank = max(update.rank for update in updates)
    state = {}
    for name in updates[0].state:
        values = [_padded(update.state[name], part_of(name), rank) for update in updates]
        state[name] = _weighted(values, weights)
    return Aggregate(state, rank, updates[0].scale)


def _concatenated(name: str, parts: Sequence[tuple[State, float]], rank: int) -> Tensor:
    """One factor of all parts, written into its place without a second copy.

    The factor of the product goes into A, and into A alone.
    """
    first = parts[0][0][name]
    left = part_of(name) == "A"
    shape = (rank, *first.shape[1:]) if left else (first.shape[0], rank, *first.shape[2:])
    whole = torch.empty(shape, dtype=torch.float32)
    start = 0
    for state, factor in parts:
        value = state[name]
        count = value.shape[0 if left else 1]
        place = whole.narrow(0 if left else 1, start, count)
        place.copy_(value)
        if left:
            place.mul_(factor)
        start += count
    return whole


def _weighted(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros(values[0].shape, dtype=torch.float32)
    for value, weight in zip(values, weights, strict=True):
        total.add_(value.float(), alpha=weight)
    return total


def _padded(value: Tensor, part: str, rank: int) -> Tensor:
    axis = {"A": 0, "B": 1}.get(part)
    if axis is None or value.shape[axis] == rank:
        return value
    shape = list(value.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([value, value.new_zeros(shape)], dim=axis)


def _whole(state: State) -> Mapping[str, Tensor]:
    return {name: value for name, value in state.items() if part_of(name) == "whole"}


def _require_equal(updates: Sequence[Update], *, ranks: bool) -> None:
    first = updates[0]
    for update in updates[1:]:
        if ranks and update.rank != first.rank:
            raise WeightsError(
                f"Client '{update.client}' has rank {update.rank}, '{first.client}' {first.rank}.",
                expected="one rank, for factors that are averaged",
                next_step="method=flora or method=zeropad, or one rank for all: ranks=4",
            )
        if update.rank and update.scale != first.scale:
            raise WeightsError(
                f"Client '{update.client}' has scaling {update.scale}, '{first.client}' "
                f"{first.scale}.",
                expected="one scaling alpha / r, for factors that are averaged",
                next_step="method=flora takes any.",
            )
