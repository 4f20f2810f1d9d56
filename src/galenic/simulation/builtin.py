"""Twins that come with galenic, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from galenic.core.errors import ConfigError, DataError, nearest
from galenic.simulation.metabolic import Metabolic, MetabolicRules
from galenic.simulation.twin import Twin
from galenic.simulation.wolf_sheep import WolfSheep, WolfSheepRules

PREFIX = "twin:"
TWINS: dict[str, tuple[type, Callable[[Any], Twin]]] = {
    "wolf_sheep": (WolfSheepRules, WolfSheep),
    "metabolic": (MetabolicRules, Metabolic),
}


def open_twin(source: str, rules: Mapping[str, float]) -> Twin:
    """The twin that `twin:NAME` names, with some of its rules changed.

    Raises:
        DataError: If there is no such twin.
        ConfigError: If a rule is unknown, or its value senseless.
    """
    name = source.removeprefix(PREFIX)
    if not source.startswith(PREFIX) or name not in TWINS:
        raise DataError(
            f"'{source}' is no twin. {nearest(name, TWINS)}".strip(),
            where="data",
            expected=" or ".join(PREFIX + known for known in TWINS),
            next_step="A model of your own is steered from Python: see docs/methods/digital-twin-control.md.",
        )
    kind, make = TWINS[name]
    known = {field.name: field.type for field in fields(kind)}
    values: dict[str, Any] = {}
    for rule, value in rules.items():
        if rule not in known:
            raise ConfigError(
                f"The twin has no rule '{rule}'. {nearest(rule, known)}".strip(),
                where="rules",
                expected=", ".join(known),
            )
        whole = known[rule] == "int"
        if not math.isfinite(value) or (whole and value != int(value)):
            raise ConfigError(
                f"'{rule}' is {value}.",
                where="rules",
                expected="a whole number" if whole else "a finite number",
            )
        values[rule] = int(value) if whole else float(value)
    return make(kind(**values))
