"""How soon `galenic ls` answers, beside the bare import of the libraries that print it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.harness import alternate, write_result
from galenic.core.recipes import list_recipes

SECONDS = 0.3
LIBRARIES = "import typer, rich.table, pydantic, yaml"


def main() -> None:
    """Measure, check that the list is whole, write the result."""
    command = [str(Path(sys.executable).with_name("galenic")), "ls"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    missing = [recipe.recipe for recipe in list_recipes() if recipe.recipe not in listed]
    assert not missing, f"not listed: {missing}"

    def ours() -> None:
        subprocess.run(command, capture_output=True, check=True)

    def peer() -> None:
        subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, check=True)

    times = alternate(ours, peer, rounds=15, warmup=2)
    write_result(
        name="ls_startup",
        unit="s",
        times=times,
        peer={"name": f"python -c '{LIBRARIES}'", "version": f"typer {version('typer')}"},
        reach=f"under {SECONDS} s",
        met=lambda _: sorted(times.ours)[len(times.ours) // 2] < SECONDS,
        same_result=f"all {len(list_recipes())} recipes are listed",
    )


if __name__ == "__main__":
    main()
