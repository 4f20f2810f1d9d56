"""Typed configuration: pydantic models, YAML in, dotted overrides, nearest-key hints."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from galenic.core.errors import ConfigError, nearest

T = TypeVar("T", bound=BaseModel)


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def parse(kind: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """`values` as a `kind`.

    Raises:
        ConfigError: Naming each bad key, the nearest right one, and what was expected.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        faults = [_fault(kind, dict(item)) for item in error.errors()]
        keys = [".".join(str(part) for part in item["loc"]) for item in error.errors()]
        raise ConfigError(
            "; ".join(faults),
            where=f"{where}: {', '.join(dict.fromkeys(keys))}",
            next_step="`galenic show RECIPE` lists every key with its default.",
        ) from None


def _fault(kind: type[BaseModel], item: Mapping[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        hint = nearest(path[-1], _fields_at(kind, path[:-1]))
        return f"Unknown key '{key}'. {hint}".strip()
    if item["type"] == "missing":
        return f"Key '{key}' is missing"
    return f"Key '{key}' got {item.get('input')!r}: {item['msg']}"


def _fields_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        if field is None:
            return []
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: If the file is missing, is not YAML, or holds no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())
    except FileNotFoundError:
        raise ConfigError(f"There is no file '{path}'.") from None
    except IsADirectoryError:
        raise ConfigError(
            f"'{path}' is a folder.",
            expected="a YAML file",
            next_step=f"What a run folder holds is told by: galenic report {path}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"'{path}' is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"'{path}' holds {type(values).__name__}, not a mapping of keys.", where=str(path)
        )
    return values


def _loader() -> type[yaml.SafeLoader]:
    # libyaml is ten times faster, and `galenic ls` reads every recipe.
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def dump_yaml(values: Mapping[str, Any] | BaseModel) -> str:
    """`values` as YAML, in the order given."""
    plain = values.model_dump(mode="json") if isinstance(values, BaseModel) else dict(values)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with `a.b=3` style overrides; values are read as YAML.

    Raises:
        ConfigError: If an override has no '=' or goes through a value that is no mapping.
    """
    result = copy.deepcopy(dict(values))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"Override '{override}' has no '='.",
                expected="key=value, with dots for inner keys: schedule.lr=1e-3",
            )
        *parents, last = key.strip().split(".")
        place = result
        for part in parents:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"Override '{override}': '{part}' holds {inner!r}, no keys.")
            place = inner
        place[last] = _scalar(text)
    return result


def _scalar(text: str) -> Any:
    try:
        value = yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        if all(text.count(a) == text.count(b) for a, b in ("{}", "[]")):
            # A template such as '{text} is {mask}.' only opens like a mapping.
            return text
        raise ConfigError(f"Value '{text}' is not YAML: {error}") from None
    if isinstance(value, str) and not text.lstrip().startswith(("'", '"')):
        # YAML 1.1 reads 1e-3 as text; everyone who types it means the number.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, mapping by mapping; neither is changed."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
