"""`patch | port`: what fine-tuning added, taken out and put into a later base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galenic.app.bar import Bar
from galenic.app.guard import guarded
from galenic.app.options import Debug, Json, examples, print_json, quiet_libraries

app = typer.Typer()


@app.command(
    epilog=examples(
        "galenic patch model-1.0 model-1.0-triage --out triage.safetensors",
        "galenic patch model-1.0 model-1.0-triage --out triage.safetensors --rank 8",
    )
)
@guarded
def patch(
    base: Annotated[str, typer.Argument(help="The checkpoint before training.")],
    tuned: Annotated[str, typer.Argument(help="The same after it.")],
    out: Annotated[Path, typer.Option("--out", help="The new file.")],
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Keep this many singular values a matrix.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Take the difference of two checkpoints as a patch."""
    quiet_libraries()
    from galenic.merging.patches import Patch

    made = Patch.from_checkpoints(base, tuned, rank)
    made.save(out)
    typer.echo(f"tensors that differ: {len(made.delta.entries)}")
    for name in made.delta.absolute:
        typer.echo(f"copied: {name}")
    typer.echo(f"patch: {out}")


@app.command(
    epilog=examples(
        "galenic port adapter --from model-1.0 --onto model-1.1 --out model-1.1-triage",
        "galenic port triage.safetensors --onto model-1.1 --dry-run",
    )
)
@guarded
def port(
    patch: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter, or a patch file.")],
    onto: Annotated[str, typer.Option("--onto", help="The new base: folder, file or cached id.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new folder.")] = None,
    old: Annotated[
        str | None, typer.Option("--from", help="The base that the patch was trained on.")
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Factor of the patch.")] = 1.0,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            help="same, missing, config or vocabulary: what would be refused otherwise; repeatable.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and write nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put a patch into a later version of its base, without training."""
    quiet_libraries()
    from galenic.core.errors import ConfigError
    from galenic.core.files import plain
    from galenic.merging.patches import Patch, allowed

    if out is None and not dry_run:
        raise ConfigError("No output was named.", next_step="--out FOLDER, or --dry-run")
    opened, kept = Patch.open(patch, old), allowed(allow or ())
    if out is None or dry_run:
        known = opened.check(onto, old, allow=kept)
    else:
        with Bar("porting") as bar:
            step = None if as_json else bar.step
            known = opened.port(onto, out, old=old, scale=scale, allow=kept, progress=step)
    if as_json:
        print_json(plain(known))
        return
    from galenic.app import screen

    screen.ported(known)
    typer.echo("nothing was written" if dry_run else f"ported: {out}")
