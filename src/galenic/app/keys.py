"""Every key of a recipe's config, with type, default and meaning, for `galenic show`."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from galenic.core import registry
from galenic.core.recipes import Recipe

TASKS = "galenic.tasks"
TUNERS = "galenic.tuners"


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        name: Dotted name.
        type: Its type, as a person would write it.
        value: What it is in this recipe.
        default: What it is where nobody says otherwise.
        doc: What it means.
        changed: Whether the recipe changes the default.
    """

    name: str
    type: str
    value: str
    default: str
    doc: str
    changed: bool


def of_recipe(recipe: Recipe) -> list[Key]:
    """The keys of the recipe's task and of its tuner; imports the task.

    Raises:
        ConfigError: If the task or the tuner is unknown.
    """
    task = registry.load(TASKS, recipe.task)
    found = of_config(task.Config, recipe.config)
    tuner = recipe.config.get("tuner")
    if isinstance(tuner, Mapping) and "method" in tuner:
        module = registry.load(TUNERS, str(tuner["method"]))
        inner = of_config(module.Config, tuner, "tuner.")
        place = next((i for i, key in enumerate(found) if key.name == "tuner"), len(found))
        found[place : place + 1] = inner
    return found


def of_config(kind: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> list[Key]:
    """The keys of a config class, inner ones with dots, and what `values` sets them to."""
    docs = _attributes(kind)
    found = []
    for name, field in kind.model_fields.items():
        inner = _model(field.annotation)
        given = values.get(name)
        if inner is not None:
            if not field.is_required() and field.default is None:
                state = "none" if given is None else "given"
                doc = field.description or docs.get(name, "")
                changed = given is not None
                found.append(Key(prefix + name, "keys or none", state, "none", doc, changed))
            deeper = given if isinstance(given, Mapping) else {}
            found += of_config(inner, deeper, f"{prefix}{name}.")
            continue
        default = _default(field)
        found.append(
            Key(
                prefix + name,
                type_name(field.annotation),
                _text(given) if name in values else default,
                default,
                field.description or docs.get(name, ""),
                name in values and _text(given) != default,
            )
        )
    return found


def type_name(kind: Any) -> str:
    """A type as a person would write it: `int or none`, `"a" or "b"`, `list of str`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(_text(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part) for part in inner))
    if origin in (list, tuple, set):
        parts = [type_name(part) for part in inner if part is not Ellipsis]
        return f"list of {' or '.join(dict.fromkeys(parts))}"
    if origin is dict:
        return "mapping"
    if kind is type(None):
        return "none"
    if hasattr(kind, "__metadata__"):
        return type_name(inner[0])
    return getattr(kind, "__name__", str(kind))


def _model(kind: Any) -> type[BaseModel] | None:
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(needed)"
    return _text(field.get_default(call_default_factory=True, validated_data={}))


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _attributes(kind: type[BaseModel]) -> dict[str, str]:
    """The `Attributes:` section of a class docstring, by name."""
    text = inspect.getdoc(kind) or ""
    _, found, section = text.partition("Attributes:\n")
    if not found:
        return {}
    docs: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.match(r"    (\w+)(?: \([^)]*\))?: (.*)", line)
        if entry:
            name = entry[1]
            docs[name] = entry[2].strip()
        elif line.startswith("        ") and name:
            docs[name] += " " + line.strip()
        elif line and not line.startswith(" "):
            break
    return docs
