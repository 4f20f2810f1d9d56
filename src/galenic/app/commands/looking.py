"""`check | report | evidence | doctor`: what looks at data, runs and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from galenic.app.guard import guarded
from galenic.app.options import (
    Date,
    Debug,
    Inputs,
    Json,
    Kind,
    Label,
    Patient,
    Site,
    Split,
    columns,
    examples,
    print_json,
    quiet_libraries,
)

app = typer.Typer()


@app.command(
    epilog=examples(
        "galenic check cohort.csv",
        "galenic check cohort.csv --label outcome --split fold --json",
        "galenic check archive.csv --headers",
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
    headers: Annotated[
        bool, typer.Option("--headers", help="Read headers alone: fast, finds no copies.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look for unreadable files, leakage and oddities; exit 1 where there are errors."""
    from galenic.core.files import plain
    from galenic.data import seen
    from galenic.data.check import check as inspect
    from galenic.data.cohort import Cohort

    parts: Any = columns(label, inputs, patient_id, kind, site, date, split)
    look = seen.headers if headers else seen.everything
    report = inspect(Cohort.open(source, **parts), look=look)
    if as_json:
        print_json(plain(report))
    else:
        from galenic.app import screen

        screen.findings(source, report)
    if any(finding.level == "error" for finding in report.findings):
        raise typer.Exit(1)


@app.command(epilog=examples("galenic report runs/ssf-0001", "galenic report runs/compare-0001"))
@guarded
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, comparison, curve or sites.")],
    debug: Debug = False,
) -> None:
    """Write report.html into a run folder: one file that opens offline."""
    from galenic.core.run import Run

    Run.open(folder)
    from galenic.app import report as reports

    typer.echo(reports.write(folder))


@app.command(
    epilog=examples("galenic evidence ssf", "galenic evidence ssf --quick", "galenic evidence")
)
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
    quick: Annotated[
        bool, typer.Option("--quick", help="Does every arm run? Keeps nothing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Put the claim of a paper to the test, and write the page of all results."""
    from galenic.app.evidence.page import write_pages

    quiet_libraries()
    if slugs:
        from galenic.app.evidence.experiment import rehearse, run_experiment

        for slug in slugs:
            if quick:
                rehearse(slug, folder, data_root)
            else:
                typer.echo(run_experiment(slug, folder, data_root, out))
    if quick:
        return
    typer.echo(write_pages(folder))


@app.command(epilog=examples("galenic doctor", "galenic doctor --json"))
@guarded
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what is installed, what is missing, and what this machine has."""
    from galenic.app import diagnosis

    found = diagnosis.examine()
    if as_json:
        print_json(found)
        return
    from galenic.app import screen

    screen.diagnosis(found)
