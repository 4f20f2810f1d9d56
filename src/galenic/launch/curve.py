"""Learning curves: how good each recipe is with 1, 2, 4 ... patients a class."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from galenic.core.config import apply_overrides
from galenic.core.errors import ConfigError
from galenic.core.recipes import open_recipe
from galenic.core.run import Run
from galenic.core.seeds import mean_interval
from galenic.launch.repeats import (
    Repeats,
    begin,
    carried_out,
    changed,
    repeat,
    require_own,
    taken_up,
    tidy,
)

SHOTS = (1, 2, 4, 8, 16)
ALL = "all"
# Keys of the recipes that a curve sets itself.
OWN = ("split.how", "split.shots")


@dataclass(frozen=True)
class Arm:
    """One line of a curve.

    Attributes:
        name: Of the line.
        recipe: Name or file.
        overrides: Of this arm alone.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


def curve(
    recipes: Sequence[str | Arm],
    data: str | Path | None = None,
    *,
    shots: Sequence[int | str] = SHOTS,
    seeds: int = 3,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
    **options: Any,
) -> Run:
    """Run every recipe with few patients a class, several times, and write `curve.json`.

    With one seed, fewer patients are a subset of more, and the test patients stay the same; each
    seed draws all of them anew. The interval is Student's over the seeds.

    Args:
        recipes: Names or files, or arms with settings of their own.
        data: As for `run`.
        shots: Training patients a class, in all where the label has no classes; `all` for all.
        seeds: How many draws, 2 or more.
        out: Where the folder of the curve is made.
        overrides: As for `run`.
        left_out: Arms that cannot run on this data, and why: the report says so.
        **options: As for `run`.

    Raises:
        ConfigError: If there are fewer than two seeds, shots that are no counts, or overrides of
            what a curve sets itself.
        GalenicError: If a run fails; the curve's folder then says `failed`.
    """
    counts = sorted({int(count) for count in shots if str(count).isdigit()})
    unknown = [count for count in shots if not str(count).isdigit() and count != ALL]
    if seeds < 2 or not shots or unknown or (counts and counts[0] < 1):
        raise ConfigError(
            f"A curve of shots {list(shots)} and {seeds} seed(s) has no interval.",
            expected="shots of 1 or more, or 'all', and at least 2 seeds",
        )
    arms = [
        given if isinstance(given, Arm) else Arm(open_recipe(given).recipe, given)
        for given in recipes
    ]
    for arm in arms:
        require_own("curve", OWN, [*overrides, *arm.overrides])
    options.setdefault("cache", str(Path(out) / ".cache"))
    told = {
        "arms": [asdict(arm) for arm in arms],
        "left_out": dict(left_out or {}),
        "data": None if data is None else str(data),
        "shots": [*counts, *([ALL] if ALL in shots else [])],
        "seeds": seeds,
        "overrides": list(overrides),
        "options": options,
    }
    return carried_out(begin("curve", told, out), _carry_out)


def resume(path: str | Path) -> Run:
    """Go on with a curve that was cut off; what it finished is read, not repeated.

    Raises:
        ConfigError: If the folder is no curve.
        DataError: If the manifest is no longer the one that it began with.
        GalenicError: As for :func:`curve`; or if the curve is finished.
    """
    return carried_out(taken_up("curve", path), _carry_out)


def _carry_out(whole: Run) -> None:
    started = time.perf_counter()
    told = whole.config
    points = []
    backbones: dict[str, None] = {}
    seen: dict[str, str] = {}
    for arm in told["arms"]:
        name = arm["name"]
        for count in told["shots"]:
            # The same shares of patients as for few shots, so that test patients are the same.
            few = ["split.how=few_shot", f"split.shots={count}"]
            found = repeat(
                whole,
                arm["recipe"],
                told["data"],
                seeds=told["seeds"],
                overrides=[
                    *told["overrides"],
                    *arm["overrides"],
                    *(["split.how=stratified"] if count == ALL else few),
                ],
                **told["options"],
            )
            _require_same(seen, arm, found)
            backbones[found.provenance["weights"]["backbone"]] = None
            event = {"event": "point", "recipe": name, "shots": count, "values": found.values}
            whole.log(event)
            points.append({"recipe": name, "shots": count, **mean_interval(found.values)})
    whole.write_json(
        "curve.json",
        {
            "data": found.provenance["data"],
            "backbone": ", ".join(backbones),
            "metric": found.metric,
            "of": "in all" if found.provenance["data"]["kind"] == "mask" else "a class",
            "left_out": told["left_out"],
            "points": points,
            "seconds": time.perf_counter() - started,
        },
    )
    table = pd.DataFrame(points).drop(columns="per_seed")
    whole.write_text("curve.csv", table.to_csv(index=False))
    tidy(whole)


def _require_same(seen: dict[str, str], arm: Mapping[str, Any], found: Repeats) -> None:
    """Check that the points of a curve are of one manifest.

    Args:
        seen: Fingerprint by what was read; gains that of `found`.
        arm: Whose runs `found` is of.
        found: Of one point.

    Raises:
        DataError: If two runs that read the same columns had other data.
    """
    recipe = open_recipe(arm["recipe"])
    columns = apply_overrides(recipe.config, arm["overrides"]).get("columns")
    for fingerprint in found.fingerprints:
        if seen.setdefault(f"{recipe.task} of {columns}", fingerprint) != fingerprint:
            raise changed(str(found.provenance["data"].get("name", "data")))
