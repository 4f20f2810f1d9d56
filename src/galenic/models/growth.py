"""A trained head carried into a new set of labels, row by row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from galenic.core.errors import ConfigError, nearest
from galenic.models.heads import LinearHead


def sources(old: Sequence[str], new: Sequence[str], mapping: Mapping[str, str]) -> list[int | None]:
    """The old class whose row each new class begins with; None for a class that is new.

    Args:
        old: Names of the old classes.
        new: Names of the new ones.
        mapping: Old class by new class, where the names are not the same.

    Raises:
        ConfigError: If `mapping` names no class, or the two sets share none.
    """
    for name, known in [*((n, new) for n in mapping), *((n, old) for n in mapping.values())]:
        if name not in known:
            raise ConfigError(
                f"There is no class '{name}'. {nearest(name, known)}".strip(),
                where="head.mapping",
                expected=f"new class: old class, of {', '.join(new)} and {', '.join(old)}",
            )
    places = {name: place for place, name in enumerate(old)}
    found = [places.get(mapping.get(name, name)) for name in new]
    if all(place is None for place in found):
        raise ConfigError(
            f"The trained head knows none of the classes: it has {', '.join(old)}.",
            where="head.grow_from",
            expected=f"a run with one of {', '.join(new)}",
            next_step="Say which becomes which: head.mapping={new: old}",
        )
    return found


def grow(head: LinearHead, trained: Mapping[str, Tensor], rows: Sequence[int | None]) -> None:
    """Put the rows of a trained head into `head`, in place.

    A new class begins at zero. An old class that becomes several divides its probability among
    them: their rows are copies whose bias is less the log of their number, so that their sum is
    what the old head said. A single logit stands for the second of two classes.

    Args:
        head: With one output a class, or one for two classes.
        trained: State of the trained :class:`LinearHead`.
        rows: Of :func:`sources`.

    Raises:
        ConfigError: If the trained head is no linear one, or reads another width.
    """
    if set(trained) != set(head.state_dict()):
        raise ConfigError(
            f"The head to grow has other tensors: {', '.join(sorted(trained))}.",
            where="head.grow_from",
            expected="a run with a linear head",
        )
    if trained["mean"].shape != head.mean.shape:
        raise ConfigError(
            f"The head to grow reads {len(trained['mean'])} features; the backbone gives "
            f"{len(head.mean)}.",
            where="head.grow_from",
            expected="the backbone that it was trained on: backbone=RUN",
        )
    weight, bias = _by_class(trained["linear.weight"], trained["linear.bias"])
    shares = Counter(rows)
    new_weight, new_bias = weight.new_zeros(len(rows), weight.shape[1]), bias.new_zeros(len(rows))
    for place, row in enumerate(rows):
        if row is not None:
            new_weight[place] = weight[row]
            new_bias[place] = bias[row] - math.log(shares[row])
    if head.linear.out_features == 1:
        new_weight, new_bias = new_weight[1:] - new_weight[:1], new_bias[1:] - new_bias[:1]
    with torch.no_grad():
        head.mean.copy_(trained["mean"])
        head.scale.copy_(trained["scale"])
        head.linear.weight.copy_(new_weight)
        head.linear.bias.copy_(new_bias)


def _by_class(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One row a class: of a single logit z, the rows of [0, z]."""
    if len(weight) > 1:
        return weight, bias
    return torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
