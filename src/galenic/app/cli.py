"""The command line: `galenic ls | show | cp | run | compare | curve | sites | merge | port | events | forecast | check | report | doctor`.

Only typer and the standard library are imported at the top: `galenic ls` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Annotated, Any

import typer

from galenic.app.commands import events, forecasting, looking, merging, porting, recipes, running

PARTS = (recipes, running, merging, porting, events, forecasting, looking)


def built(parts: Iterable[ModuleType]) -> typer.Typer:
    """The application with the verbs of some modules of commands."""
    made = typer.Typer(
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
    made.callback(invoke_without_command=True)(galenic)
    for part in parts:
        made.add_typer(part.app)
    return made


def galenic(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Fit biomedical foundation models to patients."""
    if version:
        from galenic import __version__

        typer.echo(f"galenic {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the `galenic` command.

    Typer reads the options of every verb that it knows: where the verb is one of ours, it is told
    of no other module.
    """
    # pydantic would search all installed packages for plugins of its own, which ours has no use for.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    parts = [part for part in PARTS if asked in _verbs(part.app)]
    (built(parts) if parts else app)()


def _verbs(part: typer.Typer) -> set[Any]:
    commands = {
        command.name or (command.callback.__name__ if command.callback else None)
        for command in part.registered_commands
    }
    return commands | {group.name for group in part.registered_groups}


app = built(PARTS)
