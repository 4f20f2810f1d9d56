"""What is generated is current, and holds what it says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from galenic.app.evidence.page import evidence_page, tables_of_readme, with_tables

ROOT = Path(__file__).resolve().parents[2]
RESULTS = [
    json.loads(path.read_text()) for path in sorted((ROOT / "evidence" / "results").glob("*.json"))
]


def test_the_page_of_evidence_is_current() -> None:
    assert (ROOT / "docs" / "evidence.md").read_text() == evidence_page(RESULTS)


def test_the_tables_of_the_readme_are_current() -> None:
    text = (ROOT / "README.md").read_text()
    assert with_tables(text, tables_of_readme(RESULTS)) == text


def test_the_figures_of_speed_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    benchmarks = importlib.import_module("benchmarks.__main__")
    results = benchmarks.read()
    assert (ROOT / "docs" / "benchmarks.md").read_text() == benchmarks.page(results)
    text = (ROOT / "README.md").read_text()
    assert with_tables(text, {"speed": benchmarks.speed_table(results)}) == text


def test_a_table_replaces_only_what_stands_between_its_marks() -> None:
    text = "above\n<!-- a -->\nold\n<!-- /a -->\nbelow <!-- b -->"
    made = with_tables(text, {"a": ["new"], "b": ["never"]})
    assert made == "above\n<!-- a -->\n\nnew\n\n<!-- /a -->\nbelow <!-- b -->"
    assert with_tables(made, {"a": ["new"]}) == made
