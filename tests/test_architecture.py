"""The house: floors, file sizes, light imports, names that must not be in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
CAP = 400


def test_floors_import_only_downwards() -> None:
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_no_file_is_over_the_cap() -> None:
    long = {p.name: n for p in SOURCES if (n := len(p.read_text().splitlines())) > CAP}
    assert not long


def test_recipes_hold_no_python() -> None:
    assert not list((ROOT / "src/galenic/recipes").glob("*.py"))


def test_listing_recipes_imports_nothing_heavy() -> None:
    code = (
        "import sys, galenic, galenic.app.cli\n"
        "from galenic.core.recipes import list_recipes\n"
        "list_recipes()\n"
        "heavy = {'torch', 'transformers', 'peft', 'monai', 'sklearn', 'pandas', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
