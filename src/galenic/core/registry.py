"""Find methods by the name of their module, without importing them."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from galenic.core.config import Config, parse
from galenic.core.errors import ConfigError, nearest


def modules(package: str) -> list[str]:
    """The names of the modules in `package`, sorted; nothing of it is imported.

    Names with a leading underscore are private to the package and left out.

    Raises:
        ConfigError: If there is no such package.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ConfigError(f"There is no package '{package}'.")
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return sorted(module.name for module in found if not module.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import the module `name` of `package`; hyphens and underscores are the same.

    Raises:
        ConfigError: If there is none, naming the nearest and all.
    """
    known = modules(package)
    wanted = name.replace("-", "_")
    if wanted not in known:
        room = package.rpartition(".")[2]
        raise ConfigError(
            f"There is no '{name}' among the {room}. {nearest(wanted, known)}".strip(),
            expected=f"one of {', '.join(known)}" if known else "",
        )
    return importlib.import_module(f"{package}.{wanted}")


def parse_method(package: str, values: Mapping[str, Any], key: str, example: str) -> Config:
    """The typed configuration in `values`, whose key `method` names a module of `package`.

    Args:
        package: Where the methods are; each module has a `Config` with the field `method`.
        values: Method and its own keys.
        key: Where `values` stand in the task's config, for the errors.
        example: A method, for the errors.

    Raises:
        ConfigError: If the method or a key is unknown (naming the nearest) or a value is wrong.
    """
    method = values.get("method")
    if not isinstance(method, str):
        raise ConfigError(
            f"Key '{key}.method' got {method!r}.",
            where=key,
            expected=f"one of {', '.join(modules(package))}, for example method: {example}",
        )
    kind: type[Config] = load(package, method).Config
    return parse(kind, {**values, "method": kind.model_fields["method"].default}, key)
