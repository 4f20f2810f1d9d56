"""Coefficients: a number, a list over the depth of the network, or rules by name of tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from galenic.core.config import Config
from galenic.core.errors import ConfigError

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
# What stands before the first layer of a stack; all else without a number stands after the last.
_FRONT = re.compile(r"emb|wte|wpe|patch|stem|conv1|(^|[._])(token|pos)", re.IGNORECASE)
# Heads, whatever else their names hold.
_BACK = re.compile(r"embed_out|predictions", re.IGNORECASE)


class Rule(Config):
    """A value for the tensors whose name holds a text."""

    filter: str | None = Field(
        None, description="Text that the tensor's name holds; none, or *, fits all."
    )
    value: float | list[float] = Field(description="A number, or a list over the depth.")


Setting = float | list[float] | list[Rule] | Rule


def leaves(setting: Setting) -> Iterator[float]:
    """Every number in a setting."""
    if isinstance(setting, Rule):
        yield from leaves(setting.value)
    elif isinstance(setting, list):
        for part in setting:
            yield from leaves(part)
    else:
        yield float(setting)


def _share(setting: Setting) -> Setting:
    bad = [value for value in leaves(setting) if not 0 <= value <= 1]
    if bad:
        raise ValueError(f"{bad[0]} is not between 0 and 1")
    return _finite(setting)


def _finite(setting: Setting) -> Setting:
    values = list(leaves(setting))
    if not values:
        raise ValueError("the list is empty")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("every number must be finite")
    return setting


Share = Annotated[Setting, AfterValidator(_share)]
Number = Annotated[Setting, AfterValidator(_finite)]


class Depths:
    """How deep in the network a tensor stands: 0 at its first layer, 1 at its last.

    A layer is the first number in a tensor's name, among the tensors with the same text before
    it. What has no number stands at 0 if it is an embedding or a stem by its name, else at 1.

    Args:
        names: Of all tensors.
        outside: Where all stand that have no number, whatever their names say.
    """

    def __init__(self, names: Iterable[str], outside: float | None = None) -> None:
        self._outside = outside
        self._last: dict[str, int] = {}
        for name in names:
            stack, layer = layer_of(name)
            if layer is not None:
                self._last[stack] = max(self._last.get(stack, 0), layer)

    def of(self, name: str) -> float:
        """From 0 to 1."""
        stack, layer = layer_of(name)
        if layer is None:
            front = _FRONT.search(name) and not _BACK.search(name)
            return (0.0 if front else 1.0) if self._outside is None else self._outside
        return layer / max(self._last.get(stack, 0), 1)

    @property
    def layers(self) -> int:
        """Layers of the longest stack."""
        return max(self._last.values(), default=-1) + 1


def layer_of(name: str) -> tuple[str, int | None]:
    """The stack that a tensor is in, and which of its layers; None where it is in none."""
    found = _NUMBER.search(name)
    return ("", None) if found is None else (name[: found.start()], int(found.group()))


def resolve(setting: Setting, name: str, depth: float, key: str = "value") -> float:
    """The number that a setting has at one tensor.

    Args:
        setting: What the recipe says.
        name: Of the tensor.
        depth: From 0 to 1; a list is interpolated linearly over it.
        key: What messages call the setting.

    Raises:
        ConfigError: If it has rules and none fits.
    """
    if isinstance(setting, Rule):
        setting = [setting]
    if not isinstance(setting, list):
        return float(setting)
    if isinstance(setting[0], Rule):
        for rule in setting:
            assert isinstance(rule, Rule)
            if rule.filter in (None, "*") or (rule.filter or "") in name:
                return resolve(rule.value, name, depth, key)
        raise ConfigError(
            f"No rule of '{key}' fits the tensor '{name}'.",
            where=f"parameters: {key}",
            next_step="End the rules with one that has no filter: {value: 0.5}",
        )
    return _along([float(v) for v in setting if not isinstance(v, Rule)], depth)


def _along(anchors: Sequence[float], depth: float) -> float:
    place = depth * (len(anchors) - 1)
    first = min(int(place), len(anchors) - 1)
    second = min(first + 1, len(anchors) - 1)
    part = place - first
    return anchors[first] if part == 0 else (1 - part) * anchors[first] + part * anchors[second]


def at(config: Any, name: str, depth: float) -> dict[str, float]:
    """Every setting of a method's config at one tensor, by key.

    Raises:
        ConfigError: As :func:`resolve`.
    """
    kinds = type(config).SETTINGS
    return {key: resolve(getattr(config, key), name, depth, key) for key in kinds}
