"""The registry names modules without importing them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from galenic.core import registry
from galenic.core.errors import ConfigError


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    room = tmp_path / "zoo_package"
    room.mkdir()
    (room / "__init__.py").write_text("")
    for name in ("lion", "sea_horse", "_private"):
        (room / f"{name}.py").write_text(f"NAME = {name!r}")
    (room / "broken.py").write_text("raise RuntimeError('imported')")
    (room / "pack").mkdir()
    (room / "pack" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "zoo_package"
    for name in [name for name in sys.modules if name.startswith("zoo_package")]:
        del sys.modules[name]


def test_modules_are_named_not_imported(zoo: str) -> None:
    assert registry.modules(zoo) == ["broken", "lion", "pack", "sea_horse"]
    assert "zoo_package.broken" not in sys.modules


def test_load(zoo: str) -> None:
    assert registry.load(zoo, "lion").NAME == "lion"
    assert registry.load(zoo, "sea-horse").NAME == "sea_horse"


@pytest.mark.parametrize("name", ["lyon", "_private", "", "os", "lion.x", "../lion"])
def test_unknown_name(zoo: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.load(zoo, name)
    assert "sea_horse" in caught.value.expected
    if name == "lyon":
        assert "Did you mean 'lion'?" in str(caught.value)


def test_unknown_package() -> None:
    with pytest.raises(ConfigError, match="no package 'galenic_nowhere'"):
        registry.modules("galenic_nowhere")


@pytest.mark.parametrize("package", ["galenic.tasks", "galenic.tuners", "galenic.data.readers"])
def test_our_rooms_are_listed_without_heavy_imports(package: str) -> None:
    script = f"""
import sys
from galenic.core import files, recipes, registry, run
registry.modules({package!r})
recipes.list_recipes()
print([m for m in ("torch", "transformers", "numpy", "pandas") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
