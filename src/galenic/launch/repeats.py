"""The same run with several seeds: what curves and sites are made of."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galenic import launch
from galenic.core.config import apply_overrides
from galenic.core.errors import ConfigError, DataError
from galenic.core.progress import tell
from galenic.core.recipes import open_recipe
from galenic.core.run import Run
from galenic.launch.board import UNDEFINED

DONE = "done"


@dataclass(frozen=True)
class Repeats:
    """What several seeds gave.

    Attributes:
        metric: The main one of the task.
        values: Its figure on test patients, one a seed; NaN where it is not defined on them.
        fingerprints: Of the data, one a seed; '' where no data were read.
        provenance: Of the last run.
    """

    metric: str
    values: list[float]
    fingerprints: list[str]
    provenance: dict[str, Any]


def begin(kind: str, told: Mapping[str, Any], out: str | Path) -> Run:
    """A new folder `kind-0001`, which knows all that it was told.

    Args:
        kind: `curve` or `sites`.
        told: What :func:`taken_up` gives back.
        out: Where the folder is made.
    """
    whole = Run.create(Path(out), kind)
    whole.start(
        json.loads(json.dumps(told, default=str)), recipe=kind, task=kind, command=launch.command()
    )
    return whole


def carried_out(whole: Run, work: Callable[[Run], None]) -> Run:
    """`whole` with its work done; where it ends in a fault it says `failed`."""
    with whole.working():
        work(whole)
    return whole


def changed(name: str) -> DataError:
    """What is said where a folder is gone on with on another manifest than it began with."""
    return DataError(
        "The manifest has changed since this was begun.",
        where=name,
        next_step="Begin anew, without --resume.",
    )


def require_own(kind: str, own: Sequence[str], overrides: Sequence[str]) -> None:
    """Check that overrides leave alone what differs between the runs of one folder.

    Args:
        kind: `curve` or `sites`.
        own: Dotted keys that it sets itself.
        overrides: Of the user.

    Raises:
        ConfigError: Naming the first key that it would overrule.
    """
    given = apply_overrides({}, overrides)
    for key in own:
        place: Any = given
        for part in key.split("."):
            place = place.get(part) if isinstance(place, dict) else None
        if place is not None:
            raise ConfigError(
                f"'{key}' is set by `galenic {kind}` itself, another value for each of its runs.",
                where="overrides",
                expected=f"keys other than {', '.join(own)}",
                next_step="For one run with parts of your own: galenic run.",
            )


def taken_up(kind: str, path: str | Path) -> Run:
    """A folder that was cut off.

    Raises:
        ConfigError: If it is none of this kind.
        RunError: If it is no run folder, is finished, or another process is at it.
    """
    whole = Run.open(Path(path))
    if whole.provenance["task"] != kind:
        raise ConfigError(
            f"'{whole.path.name}' was made by `galenic {whole.provenance['task']}`.",
            where=str(path),
            expected=f"a folder that `galenic {kind}` made",
        )
    whole.resume()
    return whole


def tidy(whole: Run) -> None:
    """Remove the figures of single runs, which stand in its results by now."""
    shutil.rmtree(whole.path / DONE, ignore_errors=True)


def repeat(
    whole: Run,
    recipe: str,
    data: str | Path | None,
    *,
    seeds: int,
    overrides: Sequence[str],
    **options: Any,
) -> Repeats:
    """Run a recipe once a seed inside `whole`, and keep the figures alone.

    A run that `whole` has finished with the same settings is read, not repeated; one that was
    cut off goes on from its last checkpoint.

    Args:
        whole: The run that this is a part of.
        recipe: Name or file.
        data: As for `launch.run`.
        seeds: How many, counted from zero.
        overrides: As for `launch.run`.
        **options: As for `launch.run`.

    Raises:
        GalenicError: If a run fails.
    """
    (whole.path / DONE).mkdir(exist_ok=True)
    overrides = [*overrides, "score.resamples=0"]
    config = open_recipe(recipe).config
    values, fingerprints = [], []
    for seed in range(seeds):
        asked = json.dumps([recipe, config, str(data), overrides, options, seed], default=str)
        key = hashlib.sha256(asked.encode()).hexdigest()[:16]
        name = f"{DONE}/{key}.json"
        if not (whole.path / name).is_file():
            path = whole.path / "work" / key
            done = _run(path, recipe, data, seed=seed, overrides=overrides, **options)
            metrics = done.read_json("metrics.json")
            found = {
                "metric": metrics["main"],
                "value": metrics["test"][metrics["main"]]["value"],
                "provenance": done.provenance,
            }
            whole.write_json(name, found)
            shutil.rmtree(whole.path / "work")
        one = whole.read_json(name)
        if one["value"] is None:
            tell(f"Seed {seed}: {one['metric']} {UNDEFINED}. The mean over seeds is left blank.")
        values.append(math.nan if one["value"] is None else one["value"])
        fingerprints.append(one["provenance"]["data"].get("fingerprint", ""))
    return Repeats(one["metric"], values, fingerprints, one["provenance"])


def _run(path: Path, recipe: str, data: str | Path | None, **options: Any) -> Run:
    """A run in `path`, taken up where there is one already."""
    if not path.exists():
        return launch.run(recipe, data, path=path, **options)
    if not (path / "status.json").is_file():
        # Cut off before it had said anything.
        shutil.rmtree(path)
        return launch.run(recipe, data, path=path, **options)
    left = Run.open(path)
    return left if left.state == "finished" else launch.run(recipe, resume=path)
