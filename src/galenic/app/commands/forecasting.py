"""`forecast`: one patient before a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galenic.app.guard import guarded
from galenic.app.options import Debug, Json, Seed, examples, print_json, quiet_libraries
from galenic.core.errors import ConfigError

if TYPE_CHECKING:
    from galenic.tasks._forecast_job import Job

app = typer.Typer()
TASK = "forecast"


@app.command(
    epilog=examples(
        "galenic forecast runs/ehrmamba-0001 --patient 10006 -n 50",
        "galenic forecast runs/ehrmamba-0001 --patient 10006 -n 20 --temperature 0",
        "galenic forecast runs/ehrmamba-0001 --patient 10006 --explain readmission",
    )
)
@guarded
def forecast(
    run: Annotated[Path, typer.Argument(help="A finished run of the task forecast.")],
    patient: Annotated[str, typer.Option("--patient", help="Name in the data of the run.")],
    tokens: Annotated[int, typer.Option("-n", min=0, help="Tokens to write.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Chance drawn from.")] = 0.95,
    explain: Annotated[
        str | None, typer.Option("--explain", help="Task whose answer is attributed to events.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer the tasks for one patient, explain an answer, and write how the history may go on."""
    quiet_libraries()
    from galenic.tasks.forecast import answers
    from galenic.tasks.forecast import explain as shares
    from galenic.tasks.forecast import forecast as written

    job = _opened(run)
    found: dict[str, Any] = {"answers": answers(job, patient)}
    if explain is not None:
        found["explained"] = shares(job, patient, explain)
    if tokens:
        found["forecast"] = written(
            job, patient, tokens, temperature=temperature, top_p=top_p, seed=seed
        )
    if as_json:
        print_json({k: v if k == "answers" else v.to_dict("records") for k, v in found.items()})
        return
    for name, probability in found.pop("answers").items():
        typer.echo(f"{name}: {probability:.3f}")
    for title, table in found.items():
        typer.echo(f"\n{title}\n{table.to_string(index=False)}")


def _opened(path: Path) -> Job:
    from galenic.core.run import Run
    from galenic.tasks.forecast import load

    run = Run.open(path)
    task = run.provenance.get("task", "")
    if task != TASK:
        raise ConfigError(
            f"This is a run of the task '{task}'.",
            where=str(path),
            expected="a run of the task 'forecast'",
            next_step="galenic run ehrmamba --data FOLDER",
        )
    return load(run)
