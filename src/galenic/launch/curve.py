"""Learning curves: how good each recipe is with 1, 2, 4 ... patients a class."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from galenic.core.errors import ConfigError
from galenic.core.recipes import open_recipe
from galenic.core.run import Run
from galenic.core.seeds import mean_interval
from galenic.launch.repeats import begin, end, repeat, taken_up

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
    shots = sorted(set(shots))
    if seeds < 2 or not shots or shots[0] < 1:
        raise ConfigError(
            f"A curve of shots {list(shots)} and {seeds} seed(s) has no interval.",
            expected="shots of 1 or more, and at least 2 seeds",
        )
    for name in recipes:
        open_recipe(name)
    options.setdefault("cache", str(Path(out) / ".cache"))
    told = {
        "recipes": list(recipes),
        "data": None if data is None else str(data),
        "shots": list(shots),
        "seeds": seeds,
        "overrides": list(overrides),
        "options": options,
    }
    return _carry_out(begin("curve", told, out))


def resume(path: str | Path) -> Run:
    """Go on with a curve that was cut off; what it finished is read, not repeated.

    Raises:
        ConfigError: If the folder is no curve.
        GalenicError: As for :func:`curve`; or if the curve is finished.
    """
    return _carry_out(taken_up("curve", path))


def _carry_out(whole: Run) -> Run:
    started = time.perf_counter()
    told = whole.config
    points = []
    for given in told["recipes"]:
        name = open_recipe(given).recipe
        for count in told["shots"]:
            few = [*told["overrides"], "split.how=few_shot", f"split.shots={count}"]
            found = repeat(
                whole, given, told["data"], seeds=told["seeds"], overrides=few, **told["options"]
            )
            event = {"event": "point", "recipe": name, "shots": count, "values": found.values}
            whole.log(event)
            points.append({"recipe": name, "shots": count, **mean_interval(found.values)})
    whole.write_json(
        "curve.json",
        {
            "data": found.provenance["data"],
            "backbone": found.provenance["weights"]["backbone"],
            "metric": found.metric,
            "points": points,
            "seconds": time.perf_counter() - started,
        },
    )
    end(whole)
    return whole
