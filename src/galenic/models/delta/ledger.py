"""What deltas did to a network, so that each can be taken back to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from galenic.core.errors import WeightsError

if TYPE_CHECKING:
    from galenic.models.delta import Delta

_KEY = "_galenic_deltas"
# Flat places, or None for the whole tensor, and what stands there.
Change = tuple[Tensor | None, Tensor]


@dataclass(frozen=True)
class Receipt:
    """One delta that was applied.

    Attributes:
        delta: Which.
        base: Fingerprint before the first of them.
        with_abs: Whether its absolute tensors were put in.
        before: What stood where it wrote.
    """

    delta: Delta
    base: str
    with_abs: bool
    before: Mapping[str, Change]


def base_of(network: nn.Module) -> str | None:
    """Fingerprint below the deltas of a network; None where none is applied."""
    found = _receipts(network)
    return found[0].base if found else None


def applied(network: nn.Module) -> list[Delta]:
    """The deltas of a network, in the order in which they were applied."""
    return [receipt.delta for receipt in _receipts(network)]


def enter(
    network: nn.Module,
    delta: Delta,
    base: str,
    with_abs: bool,
    state: Mapping[str, Tensor],
    changes: Mapping[str, Change],
) -> None:
    """Write `changes` into the tensors of `state` and remember what stood there.

    Raises:
        WeightsError: If `delta` is applied already, or changes a tied tensor in two ways.
    """
    receipts = _receipts(network)
    if any(receipt.delta is delta for receipt in receipts):
        raise WeightsError(
            "This delta is applied already.", next_step="revert() it first, or scale it by two."
        )
    seen: dict[int, str] = {}
    for name, change in changes.items():
        first = seen.setdefault(id(state[name]), name)
        if first != name and not _alike(state[name], changes[first], change):
            raise WeightsError(
                f"'{first}' and '{name}' are one tied tensor, and the delta changes them in two ways.",
                expected="one difference for both",
                next_step="Untie them in the network, or leave one of them out of the delta.",
            )
    before: dict[str, Change] = {}
    for name in seen.values():
        tensor, (spot, value) = state[name], changes[name]
        old = tensor.detach().clone() if spot is None else tensor.detach().reshape(-1)[spot]
        before[name] = (spot, old)
        _write(tensor, spot, value)
    network.__dict__[_KEY] = [*receipts, Receipt(delta, base, with_abs, before)]


def leave(
    network: nn.Module, delta: Delta, state: Mapping[str, Tensor]
) -> list[tuple[Delta, bool]]:
    """Undo `delta` and all that came after it, last first.

    Returns:
        Those that came after, to be applied again, each with its `with_abs`.

    Raises:
        WeightsError: If `delta` is not applied.
    """
    receipts = _receipts(network)
    place = next((i for i, receipt in enumerate(receipts) if receipt.delta is delta), None)
    if place is None:
        raise WeightsError("This delta is not applied to the network.", next_step="apply() it.")
    for receipt in reversed(receipts[place:]):
        for name, (spot, value) in receipt.before.items():
            _write(state[name], spot, value)
    if place:
        network.__dict__[_KEY] = receipts[:place]
    else:
        network.__dict__.pop(_KEY)
    return [(receipt.delta, receipt.with_abs) for receipt in receipts[place + 1 :]]


def _receipts(network: nn.Module) -> list[Receipt]:
    found: list[Receipt] = network.__dict__.get(_KEY, [])
    return found


def _alike(tensor: Tensor, first: Change, second: Change) -> bool:
    """Whether both changes leave the same in `tensor`."""
    left, right = (tensor.detach().clone() for _ in range(2))
    _write(left, *first)
    _write(right, *second)
    return torch.equal(left, right)


def _write(tensor: Tensor, spot: Tensor | None, value: Tensor) -> None:
    with torch.no_grad():
        if spot is None:
            tensor.copy_(value)
        elif tensor.is_contiguous():
            tensor.view(-1)[spot] = value
        else:
            flat = tensor.reshape(-1).clone()
            flat[spot] = value
            tensor.copy_(flat.reshape(tensor.shape))
