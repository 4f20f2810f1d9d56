"""Recipes are found by name or file, and a broken one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from galenic.core import recipes
from galenic.core.errors import ConfigError
from galenic.core.recipes import list_recipes, open_recipe, recipe_path

MINE = """
recipe: mine
title: My own
task: classify
config: {schedule: {lr: 1.0e-3}}
"""


def test_every_recipe_is_named_like_its_file_and_says_what_it_is() -> None:
    found = list_recipes()
    assert {"knn", "linear", "bitfit", "lora", "full", "ssf"} <= {r.recipe for r in found}
    for recipe in found:
        assert recipe_path(recipe.recipe).stem == recipe.recipe
        assert recipe.title
        assert recipe.about.summary
        assert recipe.about.paper
        assert recipe.about.family


def test_open_by_name_and_by_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    assert open_recipe("ssf").config["tuner"]["method"] == "ssf"
    assert open_recipe(str(path)).config == {"schedule": {"lr": 1e-3}}
    assert open_recipe(path).recipe == "mine"


def test_a_file_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert open_recipe("mine.yml").title == "My own"


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'linear'"):
        open_recipe("liner")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (MINE.replace("task: classify\n", ""), "Key 'task' is missing"),
        (MINE.replace("title", "titel"), "Did you mean 'title'?"),
        (MINE.replace("recipe: mine", "recipe: ../up"), "Key 'recipe' got '../up'"),
        (MINE + "about: {mergable: true}\n", "Did you mean 'mergeable'"),
        ("recipe: [", "is not YAML"),
    ],
)
def test_broken_file(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        open_recipe(path)
    assert part in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"no file 'nowhere\.yaml'"):
        open_recipe("nowhere.yaml")


def test_a_new_file_is_a_new_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    monkeypatch.setattr(recipes, "_folder", lambda: tmp_path)
    assert [recipe.recipe for recipe in list_recipes()] == ["mine"]
