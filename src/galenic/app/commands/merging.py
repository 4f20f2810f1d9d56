"""`merge`: combine checkpoints by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from galenic.app.guard import guarded
from galenic.app.options import Debug, Json, examples, print_json, quiet_libraries

app = typer.Typer()


@app.command(
    epilog=examples(
        "galenic merge recipe.yaml --out merged",
        "galenic merge mergekit.yaml --out merged --json",
    )
)
@guarded
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe file; mergekit's are read too.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge checkpoints tensor by tensor, in little memory."""
    quiet_libraries()
    from galenic.merging import merge as run

    bar = _Bar()
    try:
        document = run(recipe, out, progress=None if as_json else bar.step)
    finally:
        bar.close()
    from galenic.app.report import merge as picture

    page = picture.write(out)
    if as_json:
        print_json({key: value for key, value in document.items() if key != "tensors"})
        return
    from galenic.app import screen

    screen.merged(document)
    typer.echo(f"merged: {out}\nreport: {page}")


class _Bar:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def step(self, done: int, total: int, name: str) -> None:
        """Called after every tensor."""
        import sys

        if not sys.stderr.isatty():
            return
        if self._progress is None:
            from rich.progress import Progress

            from galenic.app import screen

            self._progress = Progress(console=screen.console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task("merging", total=total)
        self._progress.update(self._task, completed=done, description=name[-40:])

    def close(self) -> None:
        """Take it off the screen."""
        if self._progress is not None:
            self._progress.stop()
