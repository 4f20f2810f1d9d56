"""Find methods by the name of their module, without importing them."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType

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
