"""What one client sends, and whether it can be used: tensors of an adapter, by PEFT's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from galenic.core.errors import DataError, WeightsError

State = Mapping[str, Tensor]
Part = Literal["A", "B", "bias", "whole"]
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?:embedding_)?(?P<part>[AB])(?P<leaf>\.weight|\.bias)?")


@dataclass(frozen=True, eq=False)
class Update:
    """What one client sends after its training.

    Attributes:
        client: Its name, which appears in errors.
        samples: How many samples it trained on.
        state: Factors `A` [r, ...] and `B` [o, r, ...] under PEFT's names; every other tensor is a
            whole one (a head, a dense weight).
        rank: r of its factors; 0 where it sends none.
        scale: alpha / r, the factor of its product `B A`.
        base: Fingerprint of the weights that it started from.
    """

    client: str
    samples: int
    state: State
    rank: int = 0
    scale: float = 1.0
    base: str = ""


@dataclass(frozen=True)
class Refusal:
    """An answer that was not counted, and why."""

    client: str
    reason: str


@dataclass(frozen=True)
class Pair:
    """Names of the factors of one layer."""

    a: str
    b: str


def part_of(name: str) -> Part:
    """Which part of a layer a tensor is, by its name alone: a rank may equal a width.

    Raises:
        WeightsError: If it belongs to an adapter that is more than `B A`, such as DoRA.
    """
    found = _FACTOR.fullmatch(name)
    if found is None:
        if ".lora_" in name:
            raise WeightsError(
                f"'{name}' is no factor of a plain LoRA.",
                expected="lora_A and lora_B alone",
                next_step="Train the clients with tuner.method=lora.",
            )
        return "whole"
    if found["leaf"] == ".bias":
        return "bias"
    return "A" if found["part"] == "A" else "B"


def pairs_of(state: State, client: str = "") -> dict[str, Pair]:
    """Layer and names of its two factors, sorted by layer.

    Raises:
        WeightsError: If a layer has one factor only, or a tensor is none of a plain LoRA.
    """
    found: dict[str, dict[str, str]] = {}
    for name in sorted(state):
        part = part_of(name)
        if part in ("A", "B"):
            match = _FACTOR.fullmatch(name)
            assert match is not None
            found.setdefault(match["layer"], {})[part] = name
    for layer, names in found.items():
        for part in ("A", "B"):
            if part not in names:
                raise WeightsError(
                    f"Client '{client}' sent no lora_{part} of '{layer}'.",
                    expected="both factors of each layer",
                )
    return {layer: Pair(names["A"], names["B"]) for layer, names in found.items()}


def signature(state: State) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor but for the rank: what all clients of one federation must share."""
    shapes = {}
    for name, value in state.items():
        shape, part = tuple(value.shape), part_of(name)
        if part == "A":
            shape = shape[1:]
        elif part == "B":
            shape = (shape[0], *shape[2:])
        shapes[name] = shape
    return shapes


def check(update: Update, expected: Mapping[str, tuple[int, ...]], base: str) -> None:
    """Refuse what would spoil an aggregate.

    Args:
        update: Of one client.
        expected: Signature that all must share.
        base: Fingerprint that all must have started from.

    Raises:
        DataError: If the number of samples is not positive.
        WeightsError: If the base is another, the tensors are others, a rank is 0 or not what is
            said, or a value is not finite; names client and tensor.
    """
    client = update.client
    if update.samples <= 0:
        raise DataError(
            f"Client '{client}' says that it trained on {update.samples} samples.",
            expected="at least one",
        )
    if update.base != base:
        raise WeightsError(
            f"Client '{client}' trained on another base: {update.base}.",
            expected=f"weights with fingerprint {base}",
            next_step="Open the same backbone, and name the same classes, at every client.",
        )
    _check_tensors(update, expected)
    for pair in pairs_of(update.state, client).values():
        for name, rank in (
            (pair.a, update.state[pair.a].shape[0]),
            (pair.b, update.state[pair.b].shape[1]),
        ):
            if rank == 0 or rank != update.rank:
                raise WeightsError(
                    f"Client '{client}' sent '{name}' of rank {rank}; it says {update.rank}.",
                    expected="one rank, 1 or more, for all its factors",
                )
    for name, value in update.state.items():
        if not torch.isfinite(value).all():
            raise WeightsError(
                f"Client '{client}' sent '{name}' with values that are not finite.",
                next_step="Lower schedule.lr there.",
            )
    if not 0 < update.scale < float("inf"):
        raise WeightsError(f"Client '{client}' has scaling {update.scale}.", expected="above 0")


def check_all(updates: Sequence[Update]) -> list[Update]:
    """The updates in the order of their clients, each of them checked against the first.

    Raises:
        DataError: If there are none, or a client is there twice; as :func:`check`.
        WeightsError: As :func:`check`.
    """
    if not updates:
        raise DataError("There is nothing to put together: no client sent anything.")
    ordered = sorted(updates, key=lambda update: update.client)
    for first, second in zip(ordered, ordered[1:], strict=False):
        if first.client == second.client:
            raise DataError(f"Client '{first.client}' is there twice.", expected="each client once")
    expected = signature(ordered[0].state)
    for update in ordered:
        check(update, expected, ordered[0].base)
    return ordered


def _check_tensors(update: Update, expected: Mapping[str, tuple[int, ...]]) -> None:
    found = signature(update.state)
    faults = [f"'{name}' is missing" for name in sorted(set(expected) - set(found))]
    faults += [f"'{name}' is not asked for" for name in sorted(set(found) - set(expected))]
    faults += [
        f"'{name}' has shape {found[name]} (its rank left out), not {expected[name]}"
        for name in sorted(set(found) & set(expected))
        if found[name] != expected[name]
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(
            f"Client '{update.client}' sent other tensors: {'; '.join(faults[:3])}{more}.",
            expected="the same layers at every client",
            next_step="Give every client the same backbone and tuner.target_modules.",
        )
