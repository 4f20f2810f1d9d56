"""`events read | label`: from records of patients to an event table, and from that to samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galenic.app.guard import guarded
from galenic.app.options import Debug, Json, Overrides, examples, print_json

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Records of patients as one table of events.")
app.add_typer(group, name="events")


@group.command(
    epilog=examples(
        "galenic events read export/ --out events",
        "galenic events read Patient.ndjson Observation.ndjson --out events --timezone Europe/Rome",
        "galenic events read tables/ --mapping omop --out events",
        "galenic events read tables/ --mapping mine.yaml --out events",
    )
)
@guarded
def read(
    sources: Annotated[
        list[Path],
        typer.Argument(help="FHIR R4 bundles or NDJSON, MEDS folders, or folders of tables."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The new folder, in MEDS format.")],
    mapping: Annotated[
        str | None,
        typer.Option("--mapping", help="Of tables: omop, mimic3, eicu, physionet2012, or a file."),
    ] = None,
    timezone: Annotated[
        str, typer.Option("--timezone", help="Of times that are written without one.")
    ] = "UTC",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read records into MEDS, and count whatever is left out or kept in doubt."""
    from galenic.data.events import convert
    from galenic.data.events.ingest import REPORT

    made = convert(sources, out, mapping=mapping, timezone=timezone)
    if as_json:
        print_json(made.to_dict())
        return
    from galenic.app import screen

    screen.read_events(made)
    typer.echo(
        f"events: {out}\nleft out: {out / REPORT}\n"
        f"next: galenic events label {out} --task readmission --out labels.csv"
    )


@group.command(
    epilog=examples(
        "galenic events label events --task readmission --out labels.csv",
        "galenic events label events --task conditions label.codes.regex='ICD10CM//E11.*' "
        "--out diabetes.csv",
        "galenic events label events --task mine.yaml --out labels.csv",
    )
)
@guarded
def label(
    folder: Annotated[Path, typer.Argument(help="A MEDS folder, as `events read` writes it.")],
    task: Annotated[
        str,
        typer.Option(
            "--task",
            help="mortality, hospital_mortality, readmission, length_of_stay, conditions, or a file.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The new CSV: patient_id, cutoff, label.")],
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Label the samples of a task; all that is before a cutoff may be used to predict."""
    from galenic.core.files import atomic_write
    from galenic.data.events import definitions, ingest

    definition = definitions.load(task, overrides or ())
    judged = definitions.judge(ingest.read(folder).frame, definition)
    samples = definitions.samples(judged)
    atomic_write(out, samples.write_csv())
    counts = {
        "samples": len(samples),
        "positive": int(samples["label"].sum()),
        "excluded": dict(sorted(judged["excluded"].drop_nulls().value_counts().iter_rows())),
    }
    if as_json:
        print_json(counts)
        return
    from galenic.app import screen

    screen.labelled(f"{definition.name}: {definition.about}", counts)
    typer.echo(f"labels: {out}")
