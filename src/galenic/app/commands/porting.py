"""`patch | port`: what fine-tuning added, taken out and put into a later base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galenic.app.bar import Bar
from galenic.app.guard import guarded
from galenic.app.options import Debug, Json, examples, print_json, quiet_libraries

if TYPE_CHECKING:
    from galenic.merging.patches import Patch, Portability, Probe

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
        "galenic port adapter --from model-1.0 --onto model-1.1 --onto model-1.2 --out ported",
        "galenic port adapter --from model-1.0 --onto model-1.1 --max-drift 0.3 --out model-1.1-triage",
    )
)
@guarded
def port(
    patch: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter, or a patch file.")],
    onto: Annotated[
        list[str],
        typer.Option(
            "--onto",
            help="The new base: folder, file or cached id; repeatable, one folder in --out for each.",
        ),
    ],
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
    max_drift: Annotated[
        float | None,
        typer.Option("--max-drift", help="Refuse a base that moved more, as part of its norm."),
    ] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option("--min-cosine", help="Refuse a base where a layer's inputs agree less."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="File of text, one a line, to see how far inputs moved."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and write nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Put a patch into later versions of its base, without training."""
    quiet_libraries()
    from galenic.core.config import parse
    from galenic.core.errors import ConfigError
    from galenic.core.files import plain
    from galenic.merging.patches import Gate, Patch, allowed

    if out is None and not dry_run:
        raise ConfigError("No output was named.", next_step="--out FOLDER, or --dry-run")
    opened, place = Patch.open(patch, old), None if dry_run else out
    limits = {"max_drift": max_drift, "min_cosine": min_cosine}
    options: dict[str, Any] = {
        "old": old,
        "allow": allowed(allow or ()),
        "gate": parse(Gate, limits, "gate"),
        "probe": None if text is None else _probe(text, old),
    }
    if len(onto) > 1:
        _chain(opened, onto, {**options, "scale": scale, "out": place}, as_json)
        return
    if place is None:
        known = opened.check(onto[0], **options)
    else:
        with Bar("porting") as bar:
            step = None if as_json else bar.step
            known = opened.port(onto[0], place, scale=scale, **options, progress=step)
    if as_json:
        print_json(plain(known))
    else:
        _tell(known, place)
    _require([known], onto)


def _probe(text: Path, old: str | None) -> Probe:
    """The lines of a file, read by the old base."""
    from galenic.core.errors import ConfigError
    from galenic.merging.patches import Probe

    if old is None:
        raise ConfigError(
            "The inputs of the old base are not known.", where="--text", next_step="--from BASE"
        )
    try:
        lines = text.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{text}' cannot be read: {error}.", where="--text") from None
    return Probe.of_texts(old, [line for line in lines if line.strip()])


def _chain(patch: Patch, onto: Sequence[str], options: dict[str, Any], as_json: bool) -> None:
    """Port to each base, into a folder of its name."""
    from galenic.core.errors import ConfigError
    from galenic.core.files import plain
    from galenic.merging.patches import chain

    names = [Path(base).expanduser().resolve().name.removesuffix(".safetensors") for base in onto]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"Two bases are called '{name}'.", where="--onto", expected="a name for each"
            )
    with Bar("porting") as bar:
        step = None if as_json else bar.step
        versions = chain(patch, dict(zip(names, onto, strict=True)), **options, progress=step)
    if as_json:
        print_json(plain(versions))
    else:
        for version in versions:
            typer.echo(f"version: {version.name}")
            _tell(version.portability, version.folder)
    _require([version.portability for version in versions], names)


def _tell(known: Portability, folder: Path | None) -> None:
    from galenic.app import screen

    screen.ported(known)
    typer.echo("nothing was written" if folder is None else f"ported: {folder}")


def _require(found: Sequence[Portability], names: Sequence[str]) -> None:
    """Leave with the error of the first that was refused, once all of them were told."""
    from galenic.merging.patches.gate import require_accepted

    for known, name in zip(found, names, strict=True):
        require_accepted(known, name)
