"""Recipes: presets of a task with the defaults of one paper, as YAML files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from galenic.core.config import Config, load_yaml, parse
from galenic.core.errors import ConfigError, nearest


class About(Config):
    """What a method is, and what it can do."""

    paper: str = Field(default="", description="Authors, title, venue and year.")
    url: str = Field(default="", description="Where the paper can be read.")
    family: str = Field(default="", description="baseline, tuner, objective, ...")
    modalities: list[str] = Field(default=[], description="What it works on; empty for everything.")
    needs_labels: bool = True
    mergeable: bool | None = Field(
        default=None,
        description="Whether it folds into the backbone's weights; None if not a tuner.",
    )
    summary: str = Field(default="", description="What it does, in one line.")


class Range(Config):
    """Numbers that a search may try."""

    low: float
    high: float
    log: bool = Field(default=False, description="Draw the logarithm uniformly.")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self.low} to {self.high} is no range")
        return self


class Recipe(Config):
    """One recipe file.

    Attributes:
        recipe: Its name, and that of the run folders it makes.
        title: Its name in words.
        task: The module of `galenic.tasks` that carries it out.
        about: What the method is.
        config: Keys of the task's config that differ from the task's defaults.
        search: Dotted keys that may be searched: a list of choices, or a range.
    """

    recipe: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    task: str
    about: About = About()
    config: dict[str, Any] = Field(default={})
    search: dict[str, Range | list[Any]] = Field(default={})


def list_recipes() -> list[Recipe]:
    """Every recipe that comes with galenic, by name.

    Raises:
        ConfigError: If one of the files is broken.
    """
    return [_read(path) for path in sorted(_folder().glob("*.yaml"))]


def recipe_path(name: str) -> Path:
    """The file of the recipe `name`.

    Raises:
        ConfigError: If there is none, naming the nearest.
    """
    known = {path.stem: path for path in sorted(_folder().glob("*.yaml"))}
    wanted = name.replace("_", "-") if name not in known else name
    if wanted not in known:
        raise ConfigError(
            f"There is no recipe '{name}'. {nearest(name, known)}".strip(),
            expected="a name that `galenic ls` shows, or the path of a .yaml file",
            next_step="galenic ls",
        )
    return known[wanted]


def open_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe with this name, or in this file.

    Raises:
        ConfigError: If there is no such recipe or file, or it is broken.
    """
    return _read(locate(name_or_path))


def locate(name_or_path: str | Path) -> Path:
    """The file meant by a name or a path.

    Raises:
        ConfigError: As :func:`recipe_path`.
    """
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or "/" in text or "\\" in text
    if is_path or text.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    return recipe_path(text)


def _folder() -> Path:
    return Path(str(resources.files("galenic"))) / "recipes"


def _read(path: Path) -> Recipe:
    return parse(Recipe, load_yaml(path), where=f"recipe file {path.name}")
