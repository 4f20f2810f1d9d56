"""The command line: `galenic ls | show | cp | run | compare | check | report | doctor`.

Only typer and the standard library are imported at the top: `galenic ls` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galenic.app.guard import guarded
from galenic.core.errors import ConfigError

if TYPE_CHECKING:
    from galenic.core.run import Run

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


def _examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  {line}" for line in lines)


@app.callback(invoke_without_command=True)
def galenic(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Fit biomedical foundation models to patients."""
    if version:
        from galenic import __version__

        typer.echo(f"galenic {__version__}")
        raise typer.Exit


@app.command(epilog=_examples("galenic ls", "galenic ls --json"))
@guarded
def ls(as_json: Json = False) -> None:
    """List the recipes."""
    from galenic.core.recipes import list_recipes

    recipes = list_recipes()
    if as_json:
        _print_json([recipe.model_dump(exclude={"config"}) for recipe in recipes])
        return
    from galenic.app import screen

    screen.recipes(recipes)


@app.command(epilog=_examples("galenic show ssf", "galenic show mine.yaml --plain"))
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


@app.command(
    epilog=_examples("galenic cp ssf mine.yaml", "galenic run mine.yaml --data cohort.csv")
)
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


@app.command(
    epilog=_examples(
        "galenic run ssf --data sample:icd10",
        "galenic run lora --data cohort.csv --label diagnosis --patient-id pid tuner.rank=4",
        "galenic run mine.yaml --data xrays/ backbone=facebook/dinov2-small",
        "galenic run --resume runs/ssf-0001",
    )
)
@guarded
def run(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a recipe, or a recipe file.")
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    label: Label = None,
    inputs: Inputs = None,
    patient_id: Patient = None,
    kind: Kind = None,
    site: Site = None,
    date: Date = None,
    split: Split = None,
    out: Out = Path("runs"),
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Over the recipe's.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run folder.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="A run folder that was cut off.")
    ] = None,
    quick: Quick = False,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Run one recipe on a cohort; the run folder holds all that came out."""
    if resume is None and (recipe is None or "=" in recipe):
        raise ConfigError(
            "No recipe was named.",
            expected="a name that `galenic ls` shows, or a recipe file",
            next_step="galenic run ssf --data sample:icd10",
        )
    if resume is not None and (recipe or overrides or data):
        raise ConfigError(
            "--resume goes on with the config of the run; it takes no recipe, data or keys.",
            next_step=f"galenic run --resume {resume}",
        )
    from galenic import launch

    _quiet_libraries()
    made = launch.run(
        recipe or "",
        data,
        overrides=overrides or (),
        columns=_columns(label, inputs, patient_id, kind, site, date, split),
        out=out,
        path=None if name is None else out / name,
        seed=seed,
        resume=resume,
        quick=quick,
        cache=not no_cache,
    )
    if made.main:
        _tell(made)


@app.command(
    epilog=_examples(
        "galenic compare knn linear bitfit lora ssf full --data sample:icd10",
        "galenic compare linear ssf --data cohort.csv --label outcome schedule.epochs=5",
    )
)
@guarded
def compare(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="What to compare.")
    ],
    data: Data = None,
    label: Label = None,
    inputs: Inputs = None,
    patient_id: Patient = None,
    kind: Kind = None,
    site: Site = None,
    date: Date = None,
    split: Split = None,
    out: Out = Path("runs"),
    seed: Seed = 0,
    quick: Quick = False,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Run several recipes on the same patients, and rank them."""
    names, overrides = _sort_out(recipes)
    from galenic import launch

    _quiet_libraries()
    made = launch.compare(
        names,
        data,
        overrides=overrides,
        columns=_columns(label, inputs, patient_id, kind, site, date, split),
        out=out,
        seed=seed,
        quick=quick,
        cache=not no_cache,
    )
    from galenic.app import report as reports
    from galenic.app import screen

    screen.leaderboard(json.loads((made.path / "leaderboard.json").read_text(encoding="utf-8")))
    typer.echo(f"report: {reports.write(made.path)}")


@app.command(
    epilog=_examples(
        "galenic check cohort.csv",
        "galenic check cohort.csv --label outcome --split fold --json",
    )
)
@guarded
def check(
    source: Annotated[str, typer.Argument(help="CSV, Parquet, JSON Lines, folder or sample:NAME.")],
    label: Label = None,
    inputs: Inputs = None,
    patient_id: Patient = None,
    kind: Kind = None,
    site: Site = None,
    date: Date = None,
    split: Split = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look for unreadable files, leakage and oddities; exit 1 where there are errors."""
    from galenic.core.files import plain
    from galenic.data.check import check as inspect
    from galenic.data.cohort import Cohort

    columns: Any = _columns(label, inputs, patient_id, kind, site, date, split)
    report = inspect(Cohort.open(source, **columns))
    if as_json:
        _print_json(plain(report))
    else:
        from galenic.app import screen

        screen.findings(source, report)
    if any(finding.level == "error" for finding in report.findings):
        raise typer.Exit(1)


@app.command(epilog=_examples("galenic report runs/ssf-0001", "galenic report runs/compare-0001"))
@guarded
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a comparison.")],
    debug: Debug = False,
) -> None:
    """Write report.html into a run folder: one file that opens offline."""
    from galenic.core.run import Run

    Run.open(folder)
    from galenic.app import report as reports

    typer.echo(reports.write(folder))


@app.command(epilog=_examples("galenic evidence ssf", "galenic evidence"))
@guarded
def evidence(
    slugs: Annotated[
        list[str] | None, typer.Argument(help="Experiments; none: the pages only.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Holds SLUG.yaml.")] = Path("evidence"),
    data_root: Annotated[
        Path, typer.Option(envvar="GALENIC_DATA", help="Where the data sets lie.")
    ] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="Keeps the runs.")] = Path("runs/evidence"),
    debug: Debug = False,
) -> None:
    """Put the claim of a paper to the test, and write the page of all results."""
    from galenic.app.evidence.page import write_pages

    _quiet_libraries()
    for slug in slugs or []:
        from galenic.app.evidence.experiment import run_experiment

        typer.echo(run_experiment(slug, folder, data_root, out))
    typer.echo(write_pages(folder))


@app.command(epilog=_examples("galenic doctor", "galenic doctor --json"))
@guarded
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what is installed, what is missing, and what this machine has."""
    from galenic.app import diagnosis

    found = diagnosis.examine()
    if as_json:
        _print_json(found)
        return
    from galenic.app import screen

    screen.diagnosis(found)


def main() -> None:
    """Entry point of the `galenic` command."""
    app()


def _columns(
    label: list[str] | None,
    inputs: list[str] | None,
    patient_id: str | None,
    kind: str | None,
    site: str | None,
    date: str | None,
    split: str | None,
) -> dict[str, Any]:
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


def _sort_out(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(recipes, overrides): an override has a '=' and is not a recipe file."""
    overrides = [w for w in words if "=" in w and not w.endswith((".yaml", ".yml"))]
    names = [w for w in words if w not in overrides]
    if not names:
        raise ConfigError(
            "No recipe was named.",
            expected="at least one name that `galenic ls` shows",
            next_step="galenic compare knn linear ssf --data sample:icd10",
        )
    return names, overrides


def _tell(made: Run) -> None:
    from galenic.app import report as reports
    from galenic.app import screen

    screen.metrics(made)
    typer.echo(f"run: {made.path}")
    typer.echo(f"report: {reports.write(made.path)}")


def _quiet_libraries() -> None:
    """Keep the bars and hints of the engines off the screen; galenic draws its own."""
    import os
    import warnings

    # Of no use to who runs a recipe; the test suite sees them.
    warnings.filterwarnings("ignore", category=FutureWarning)

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _print_json(obj: Any) -> None:
    typer.echo(json.dumps(obj, indent=1, ensure_ascii=False))
