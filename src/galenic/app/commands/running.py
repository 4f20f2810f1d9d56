"""`run | predict | compare | curve | sites`: what trains, and what was trained at work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galenic.app.guard import guarded
from galenic.app.options import (
    Data,
    Date,
    Debug,
    Inputs,
    Kind,
    Label,
    NoCache,
    Out,
    Overrides,
    Patient,
    Quick,
    Seed,
    Site,
    Split,
    columns,
    examples,
    quiet_libraries,
)
from galenic.core.errors import ConfigError

if TYPE_CHECKING:
    from galenic.core.run import Run

app = typer.Typer()

Recipes = Annotated[
    list[str] | None, typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="What to compare.")
]
Shots = Annotated[
    list[str] | None,
    typer.Option("--shots", help="Training patients a class, or 'all'; repeatable."),
]
Draws = Annotated[int, typer.Option("--seeds", min=2, help="Draws of patients.")]
Resume = Annotated[Path | None, typer.Option("--resume", help="A folder that was cut off.")]


@app.command(
    epilog=examples(
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

    quiet_libraries()
    made = launch.run(
        recipe or "",
        data,
        overrides=overrides or (),
        columns=columns(label, inputs, patient_id, kind, site, date, split),
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
    epilog=examples(
        "galenic predict runs/lora-0001 --data new.csv",
        "galenic predict runs/lora-0001 --data other-hospital.csv --label diagnosis --patient-id pid",
        "galenic predict runs/irregular-ehr-0001 --data bundles/ --stays stays.csv",
    )
)
@guarded
def predict(
    trained: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    data: Annotated[str, typer.Option("--data", "-d", help="The new samples, as for `run`.")],
    label: Label = None,
    inputs: Inputs = None,
    patient_id: Patient = None,
    site: Site = None,
    stays: Annotated[
        str | None,
        typer.Option("--stays", help="Of a run of `stays`: table with patient_id and cutoff."),
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option("--mapping", help="Of tables to events, where it is not the run's; '': none."),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option("--timezone", help="Of events without one, where it is not the run's."),
    ] = None,
    out: Out = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the new folder.")] = None,
    debug: Debug = False,
) -> None:
    """Predict other samples by a finished run; those with a label are scored."""
    from galenic import launch

    quiet_libraries()
    from galenic.tasks.predict import TABLE

    made = launch.predict(
        trained,
        data,
        columns=columns(label, inputs, patient_id, site=site),
        out=out,
        path=None if name is None else out / name,
        stays=stays,
        mapping=mapping,
        timezone=timezone,
    )
    if (made.path / "metrics.json").is_file():
        _tell(made)
    typer.echo(f"predictions: {made.path / TABLE}")


@app.command(
    epilog=examples(
        "galenic compare knn linear bitfit lora ssf full --data sample:icd10",
        "galenic compare linear ssf --data cohort.csv --label outcome schedule.epochs=5",
        "galenic compare linear lora ssf --data cohort.csv --budget 12",
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
    budget: Annotated[
        int | None,
        typer.Option("--budget", min=1, help="Settings each arm tries on validation patients."),
    ] = None,
    quick: Quick = False,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Run several recipes on the same patients, and rank them."""
    names, overrides = _sort_out(recipes)
    from galenic import launch

    quiet_libraries()
    made = launch.compare(
        names,
        data,
        overrides=overrides,
        columns=columns(label, inputs, patient_id, kind, site, date, split),
        out=out,
        seed=seed,
        quick=quick,
        cache=not no_cache,
        budget=budget,
    )
    from galenic.app import report as reports
    from galenic.app import screen

    screen.leaderboard(json.loads((made.path / "leaderboard.json").read_text(encoding="utf-8")))
    typer.echo(f"report: {reports.write(made.path)}")


@app.command(
    epilog=examples(
        "galenic curve linear lora --data sample:icd10",
        "galenic curve knn linear ssf --data cohort.csv --shots 1 --shots 8 --seeds 5",
        "galenic curve --resume runs/curve-0001",
    )
)
@guarded
def curve(
    recipes: Recipes = None,
    data: Data = None,
    label: Label = None,
    inputs: Inputs = None,
    patient_id: Patient = None,
    kind: Kind = None,
    shots: Shots = None,
    seeds: Draws = 3,
    out: Out = Path("runs"),
    resume: Resume = None,
    quick: Quick = False,
    debug: Debug = False,
) -> None:
    """Learning curves: how good each recipe is with few patients a class."""
    from galenic.launch import curve as curves

    quiet_libraries()
    if resume is not None:
        _take_nothing(resume, recipes, data)
        _tell_points(curves.resume(resume), "shots")
        return
    names, overrides = _sort_out(recipes or ())
    made = curves.curve(
        names,
        data,
        overrides=overrides,
        columns=columns(label, inputs, patient_id, kind, None, None, None),
        shots=shots or curves.SHOTS,
        seeds=seeds,
        out=out,
        quick=quick,
    )
    _tell_points(made, "shots")


@app.command(
    epilog=examples(
        "galenic protocol --data cohort.csv",
        "galenic protocol --data masks.csv --label mask --shots 5 --shots all",
        "galenic protocol --data cohort.csv --backbone builtin:mobilenet-v2 "
        "--backbone builtin:efficientnet-lite0",
    )
)
@guarded
def protocol(
    overrides: Overrides = None,
    data: Data = None,
    label: Label = None,
    inputs: Inputs = None,
    patient_id: Patient = None,
    kind: Kind = None,
    backbone: Annotated[
        list[str] | None, typer.Option("--backbone", help="Networks to compare; repeatable.")
    ] = None,
    shots: Shots = None,
    seeds: Draws = 3,
    out: Out = Path("runs"),
    quick: Quick = False,
    debug: Debug = False,
) -> None:
    """The radiology protocol: all ways of using a network, on few labels and on all."""
    from galenic.launch import protocol as protocols

    quiet_libraries()
    if data is None:
        raise ConfigError("No data was named.", next_step="--data cohort.csv")
    made = protocols.protocol(
        data,
        backbones=backbone or ("auto",),
        shots=shots or protocols.SHOTS,
        columns=columns(label, inputs, patient_id, kind, None, None, None),
        seeds=seeds,
        overrides=overrides or (),
        out=out,
        quick=quick,
    )
    _tell_points(made, "shots")


@app.command(
    epilog=examples(
        "galenic sites linear lora pego --data cohort.csv --site hospital",
        "galenic sites linear ssf --data ecg.csv --site device --smallest 30 --seeds 5",
        "galenic sites --resume runs/sites-0001",
    )
)
@guarded
def sites(
    recipes: Recipes = None,
    data: Data = None,
    label: Label = None,
    inputs: Inputs = None,
    patient_id: Patient = None,
    kind: Kind = None,
    site: Site = None,
    seeds: Draws = 3,
    smallest: Annotated[
        int, typer.Option("--smallest", min=1, help="Samples a site needs to be held out.")
    ] = 1,
    out: Out = Path("runs"),
    resume: Resume = None,
    debug: Debug = False,
) -> None:
    """Leave one site out: how good each recipe is in a hospital it has never seen."""
    from galenic.launch import sites as held

    quiet_libraries()
    if resume is not None:
        _take_nothing(resume, recipes, data)
        _tell_points(held.resume(resume), "site")
        return
    names, overrides = _sort_out(recipes or ())
    if data is None:
        raise ConfigError("No data was named.", next_step="--data cohort.csv --site hospital")
    made = held.sites(
        names,
        data,
        overrides=overrides,
        columns=columns(label, inputs, patient_id, kind, site, None, None),
        seeds=seeds,
        smallest=smallest,
        out=out,
    )
    _tell_points(made, "site")


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


def _take_nothing(resume: Path, recipes: Sequence[str] | None, data: str | None) -> None:
    if recipes or data:
        raise ConfigError(
            "--resume goes on as it was begun; it takes no recipes, data or keys.",
            next_step=f"--resume {resume}",
        )


def _tell_points(made: Run, key: str) -> None:
    from galenic.app import report as reports
    from galenic.app import screen

    name = {"shots": "curve.json", "site": "sites.json"}[key]
    screen.points(made.read_json(name), key)
    typer.echo(f"report: {reports.write(made.path)}")


def _tell(made: Run) -> None:
    from galenic.app import report as reports
    from galenic.app import screen

    screen.metrics(made)
    typer.echo(f"run: {made.path}")
    typer.echo(f"report: {reports.write(made.path)}")
