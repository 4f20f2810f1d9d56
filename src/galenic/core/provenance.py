"""Where a number came from: versions, system, commit, and nobody's name."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

# What shapes a number: the packages whose versions a run records.
PACKAGES = (
    *("galenic", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy"),
    *("scikit-learn", "pandas", "pyarrow", "pillow", "monai", "pydicom", "nibabel", "wfdb"),
)


def versions() -> dict[str, str]:
    """Installed versions of the packages that shape a result, without importing them."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def system() -> dict[str, Any]:
    """Python, operating system, machine type and cores; no host name."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }


def git_commit() -> dict[str, Any] | None:
    """Commit of the repository the process stands in, and whether files differ from it."""

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=5, check=True
        )
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def anonymous(text: str) -> str:
    """`text` with the home folder as `~` and the user's name in paths as `USER`."""
    import getpass

    with contextlib.suppress(RuntimeError):
        text = re.sub(re.escape(str(Path.home())) + r"(?=[/\\]|$)", "~", text)
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        return text
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$)", "USER", text)
