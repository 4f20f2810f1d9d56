"""`ls | show | cp`: recipes, without starting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galenic.app.guard import guarded
from galenic.app.options import Debug, Json, examples, print_json
from galenic.core.errors import ConfigError

app = typer.Typer()


@app.command(epilog=examples("galenic ls", "galenic ls --json"))
@guarded
def ls(as_json: Json = False) -> None:
    """List the recipes."""
    from galenic.core.recipes import list_recipes

    recipes = list_recipes()
    if as_json:
        print_json([recipe.model_dump(exclude={"config"}) for recipe in recipes])
        return
    from galenic.app import screen

    screen.recipes(recipes)


@app.command(epilog=examples("galenic show ssf", "galenic show mine.yaml --plain"))
@guarded
def show(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a recipe file.")],
    plain: Annotated[bool, typer.Option("--plain", help="The YAML only.")] = False,
    debug: Debug = False,
) -> None:
    """Show a recipe, and every key it can be given."""
    from galenic.core.recipes import locate, open_recipe

    opened = open_recipe(recipe)
    typer.echo(locate(recipe).read_text(encoding="utf-8").rstrip())
    if plain:
        return
    from galenic.app import keys, screen

    screen.keys(keys.of_recipe(opened))


@app.command(epilog=examples("galenic cp ssf mine.yaml", "galenic run mine.yaml --data cohort.csv"))
@guarded
def cp(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a recipe file.")],
    file: Annotated[Path, typer.Argument(help="The new file, or a folder for it.")],
) -> None:
    """Copy a recipe to a file of your own, to change it."""
    from galenic.core.recipes import locate, open_recipe

    open_recipe(recipe)
    source = locate(recipe)
    target = file / source.name if file.is_dir() else file
    try:
        with target.open("x", encoding="utf-8") as new:
            new.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise ConfigError(
            f"'{target}' exists already; it was not changed.",
            expected="a file that does not exist yet",
        ) from None
    except OSError as error:
        raise ConfigError(f"'{target}' cannot be written: {error.strerror}.") from None
    typer.echo(f"{target}\nnext: galenic run {target} --data cohort.csv")
