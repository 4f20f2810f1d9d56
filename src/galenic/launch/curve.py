"""Learning curves: how good each recipe is with 1, 2, 4 ... patients a class."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from galenic import launch
from galenic.core.errors import ConfigError, GalenicError
from galenic.core.recipes import open_recipe
from galenic.core.run import Run
from galenic.core.seeds import mean_interval

SHOTS = (1, 2, 4, 8, 16)


def curve(
    recipes: Sequence[str],
    data: str | Path | None = None,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = 3,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Run every recipe with few patients a class, several times, and write `curve.json`.

    With one seed, fewer patients are a subset of more, and the test patients stay the same; each
    seed draws all of them anew. The interval is Student's over the seeds.

    Args:
        recipes: Names or files.
        data: As for `run`.
        shots: Training patients a class.
        seeds: How many draws, 2 or more.
        out: Where the folder of the curve is made.
        overrides: As for `run`.
        **options: As for `run`.

    Raises:
        ConfigError: If there are fewer than two seeds, or shots that are no counts.
        GalenicError: If a run fails; the curve's folder then says `failed`.
    """
    started = time.perf_counter()
    shots = sorted(set(shots))
    if seeds < 2 or not shots or shots[0] < 1:
        raise ConfigError(
            f"A curve of shots {list(shots)} and {seeds} seed(s) has no interval.",
            expected="shots of 1 or more, and at least 2 seeds",
        )
    names = [open_recipe(name).recipe for name in recipes]
    whole = Run.create(Path(out), "curve")
    whole.start(
        {"recipes": list(recipes), "shots": list(shots), "seeds": seeds},
        recipe="curve",
        task="curve",
        command=launch.command(),
    )
    options.setdefault("cache", Path(out) / ".cache")
    points = []
    for name, given in zip(names, recipes, strict=True):
        for count in shots:
            values = []
            few = [*overrides, "split.how=few_shot", f"split.shots={count}", "score.resamples=0"]
            for seed in range(seeds):
                path = whole.path / "work"
                try:
                    done = launch.run(given, data, seed=seed, path=path, overrides=few, **options)
                except GalenicError as error:
                    whole.fail(error.found)
                    raise
                metrics = done.read_json("metrics.json")
                values.append(metrics["test"][metrics["main"]]["value"])
                provenance = done.provenance
                shutil.rmtree(path)
            whole.log({"event": "point", "recipe": name, "shots": count, "values": values})
            points.append({"recipe": name, "shots": count, **mean_interval(values)})
    whole.write_json(
        "curve.json",
        {
            "data": provenance["data"],
            "backbone": provenance["weights"]["backbone"],
            "metric": metrics["main"],
            "points": points,
            "seconds": time.perf_counter() - started,
        },
    )
    whole.finish()
    return whole
