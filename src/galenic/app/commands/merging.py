"""`merge`: combine checkpoints, or finished runs, by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from galenic.app.bar import Bar
from galenic.app.guard import guarded
from galenic.app.options import Debug, Json, examples, print_json, quiet_libraries
from galenic.core.errors import ConfigError

app = typer.Typer()


@app.command(
    epilog=examples(
        "galenic merge recipe.yaml --out merged",
        "galenic merge mergekit.yaml --out merged --json",
        "galenic merge runs.yaml --sweep alpha=0:1:0.1 --sweep density=0.1,0.2 --out merged",
        "galenic merge wise.yaml --sweep alpha=0:1:0.1 --on runs/linear-0001 --out merged",
        "galenic merge soup.yaml --greedy --out soup",
    )
)
@guarded
def merge(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A recipe file; mergekit's are read too. Its models are checkpoints, or run folders."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="Of runs: alpha=0:1:0.1 or density=0.1,0.2; repeatable."),
    ] = None,
    on: Annotated[
        list[Path] | None,
        typer.Option("--on", help="A run that judges and is not merged; repeatable."),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Of runs of one task: a greedy soup.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge checkpoints tensor by tensor, in little memory; or finished runs, judged by their tasks."""
    quiet_libraries()
    from galenic.launch import merged

    if merged.of_runs(recipe):
        _merge_runs(recipe, out, sweep or (), on or (), greedy, as_json)
        return
    if sweep or on or greedy:
        raise ConfigError(
            "--sweep, --on and --greedy need validation rows, and a checkpoint has none.",
            where=f"recipe file {recipe.name}: models",
            expected="run folders, such as those of `galenic run full`",
        )
    from galenic.merging import merge as run

    with Bar("merging") as bar:
        document = run(recipe, out, progress=None if as_json else bar.step)
    from galenic.app.report import merge as picture

    page = picture.write(out)
    if as_json:
        print_json({key: value for key, value in document.items() if key != "tensors"})
        return
    from galenic.app import screen

    screen.merged(document)
    typer.echo(f"merged: {out}\nreport: {page}")


def _merge_runs(
    recipe: Path,
    out: Path,
    sweep: Sequence[str],
    on: Sequence[Path],
    greedy: bool,
    as_json: bool,
) -> None:
    from galenic.app import report, screen
    from galenic.launch.merged import merge_runs
    from galenic.merging import grid

    made = merge_runs(recipe, out, grid=grid.parse(sweep), on=on, soup=greedy)
    page = report.write(made.path)
    document = made.read_json("sweep.json")
    if as_json:
        print_json(document)
        return
    screen.swept(document)
    typer.echo(f"merged: {out}\nreport: {page}\nnext: galenic run linear backbone={out}")
