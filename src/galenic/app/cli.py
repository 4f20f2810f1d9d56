"""The command line: `galenic ls | show | cp | run | compare | curve | sites | merge | port | events | forecast | check | report | doctor`.

Only typer and the standard library are imported at the top: `galenic ls` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from galenic.app.commands import events, forecasting, looking, merging, porting, recipes, running

app = typer.Typer(
    name="galenic",
    help="Fit biomedical foundation models to patients: one manifest, one recipe, one run folder.",
    epilog="Start here:\n\n  galenic ls\n\n  galenic run ssf --data sample:icd10\n\n"
    "  galenic compare knn linear lora ssf --data cohort.csv --label diagnosis",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def galenic(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Fit biomedical foundation models to patients."""
    if version:
        from galenic import __version__

        typer.echo(f"galenic {__version__}")
        raise typer.Exit


for part in (recipes, running, merging, porting, events, forecasting, looking):
    app.add_typer(part.app)


def main() -> None:
    """Entry point of the `galenic` command."""
    app()
