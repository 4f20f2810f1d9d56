"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the config: schedule.lr=1e-3"),
]
Data = Annotated[
    str | None,
    typer.Option("--data", "-d", help="CSV, Parquet, JSON Lines, folder, or sample:NAME."),
]
Label = Annotated[
    list[str] | None, typer.Option("--label", help="Label column; several for multi-label.")
]
Inputs = Annotated[list[str] | None, typer.Option("--inputs", help="Input column; repeatable.")]
Patient = Annotated[str | None, typer.Option("--patient-id", help="Column that names the patient.")]
Kind = Annotated[
    str | None,
    typer.Option("--kind", help="binary, multiclass, multilabel, ordinal or continuous."),
]
Site = Annotated[str | None, typer.Option("--site", help="Column of the site.")]
Date = Annotated[str | None, typer.Option("--date", help="Column of the date.")]
Split = Annotated[str | None, typer.Option("--split", help="Column that says train, val or test.")]
Out = Annotated[Path, typer.Option("--out", help="Where run folders are made.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything that is drawn.")]
Quick = Annotated[bool, typer.Option("--quick", help="A few samples and steps: does it run?")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no outputs of the frozen network.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def examples(*lines: str) -> str:
    """The examples that end a command's help."""
    return "Examples:\n\n" + "\n\n".join(f"  {line}" for line in lines)


def columns(
    label: list[str] | None,
    inputs: list[str] | None,
    patient_id: str | None,
    kind: str | None = None,
    site: str | None = None,
    date: str | None = None,
    split: str | None = None,
) -> dict[str, Any]:
    """The options that name columns, as `launch` takes them."""
    one = label[0] if label and len(label) == 1 else label or None
    return {
        "label": one,
        "inputs": inputs or None,
        "patient_id": patient_id,
        "kind": kind,
        "site": site,
        "date": date,
        "split": split,
    }


def quiet_libraries() -> None:
    """Keep the bars and hints of the engines off the screen; galenic draws its own."""
    import os
    import warnings

    # Of no use to who runs a recipe; the test suite sees them.
    warnings.filterwarnings("ignore", category=FutureWarning)

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def print_json(obj: Any) -> None:
    """Print for machines."""
    typer.echo(json.dumps(obj, indent=1, ensure_ascii=False))
