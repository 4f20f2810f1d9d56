"""The Python examples of the documentation run, and every recipe has a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from galenic.core.recipes import list_recipes

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
EXAMPLES = [(page, code) for page in PAGES for code in BLOCK.findall(page.read_text())]


@pytest.mark.parametrize(("page", "code"), EXAMPLES, ids=[page.stem for page, _ in EXAMPLES])
def test_example_runs(page: Path, code: str) -> None:
    exec(compile(code, str(page), "exec"), {"__name__": "example"})


def test_every_recipe_is_on_a_page_of_methods() -> None:
    text = " ".join(page.read_text() for page in (DOCS / "methods").glob("*.md"))
    missing = [
        r.recipe
        for r in list_recipes()
        if f"`{r.recipe}`" not in text and f"run {r.recipe}" not in text
    ]
    assert missing == []
