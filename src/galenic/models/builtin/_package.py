"""Files that installed packages carry."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from galenic.core.errors import MissingExtraError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def package_folder(package: str, extra: str) -> Path:
    """Folder of an installed package, without importing it.

    Raises:
        MissingExtraError: If it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError.of(package, extra)
    return Path(next(iter(spec.submodule_search_locations)))
