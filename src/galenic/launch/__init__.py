"""The verbs: `run` one recipe, `compare` several on the same patients, `predict` for others."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galenic import tuners
from galenic.core import registry
from galenic.core.config import apply_overrides, merge, parse
from galenic.core.errors import ConfigError, GalenicError
from galenic.core.recipes import Recipe, open_recipe
from galenic.core.run import Run
from galenic.launch.board import board as board_of

TASKS = "galenic.tasks"


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        path: Folder of the leaderboard, with one run folder an arm.
        board: What `leaderboard.json` holds.
    """

    path: Path
    board: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row an arm, best first."""
        return self.board["rows"]


def run(
    recipe: str,
    data: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    path: Path | None = None,
    seed: int | None = None,
    resume: Path | None = None,
    quick: bool = False,
    cache: bool | Path = True,
    **values: Any,
) -> Run:
    """Run one recipe.

    Args:
        recipe: Name of a recipe, or the path of a recipe file.
        data: Manifest, folder or `sample:NAME`; may stand in the recipe file.
        overrides: `key=value` with dots for inner keys.
        columns: Which columns play which part (inputs, label, patient_id, kind, site, ...).
        out: Where the run folder is made.
        path: The run folder itself, instead of a numbered one under `out`.
        seed: Over the recipe's own.
        resume: A run folder that was cut off; its own config is used.
        quick: A few samples and steps, to see that it runs.
        cache: Keep outputs of the frozen network for the next run: under `out`, or in the folder
            named here.
        **values: Keys of the task's config: `backbone="builtin:minilm"`.

    Raises:
        GalenicError: For anything the user can put right; the run folder then says `failed`.
    """
    if resume is not None:
        return _resume(Path(resume))
    opened = open_recipe(recipe)
    given: dict[str, Any] = dict(values)
    if data is not None:
        given["data"] = str(data)
    if named := {k: v for k, v in (columns or {}).items() if v is not None}:
        given["columns"] = named
    if seed is not None:
        given["seed"] = seed
    if quick:
        given["quick"] = True
    task = registry.load(TASKS, opened.task)
    if cache and "cache" in task.Config.model_fields:
        given["cache"] = str(Path(out) / ".cache" if cache is True else cache)
    config = apply_overrides(merge(opened.config, given), overrides)
    if "data" not in config:
        raise ConfigError(
            "No data was named.", next_step="--data cohort.csv, or --data sample:icd10 to try"
        )
    parsed = parse(task.Config, config, where=f"recipe {opened.recipe}")
    made = Run.create(Path(out), opened.recipe, path=path)
    return _carry_out(
        task,
        parsed,
        _begun(
            made,
            parsed,
            recipe=opened.recipe,
            title=opened.title,
            about=opened.about.model_dump(),
            task=opened.task,
        ),
    )


def predict(
    trained: str | Path,
    data: str | Path,
    *,
    columns: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    path: Path | None = None,
    **values: Any,
) -> Run:
    """Predict other samples by a finished run, and score what of them has a label.

    Args:
        trained: Folder of a run of `classify`, `probe`, `noise_mask`, `distill`, `cloze`,
            `federate`, `segment`, `detect`, `stays`, `lego` or `forecast`; the data that it was
            trained on need not be there.
        data: As for :func:`run`.
        columns: As for :func:`run`; what is not named is read by the columns of the run.
        out: As for :func:`run`.
        path: As for :func:`run`.
        **values: Keys of the config of :mod:`galenic.tasks.predict`.

    Raises:
        GalenicError: For anything the user can put right; the new folder then says `failed`.
    """
    task = registry.load(TASKS, "predict")
    named = {k: v for k, v in (columns or {}).items() if v is not None}
    given = {"trained": str(trained), "data": str(data), "columns": named, **values}
    parsed = parse(task.Config, given, where="predict")
    recipe = Run.open(Path(trained)).provenance.get("recipe", "predict")
    made = Run.create(Path(out), "predict", path=path)
    return _carry_out(task, parsed, _begun(made, parsed, recipe=recipe, task="predict"))


def _begun(made: Run, config: Any, **known: Any) -> Run:
    made.start(config.model_dump(mode="json"), command=command(), seed=config.seed, **known)
    return made


def _resume(path: Path) -> Run:
    made = Run.open(path)
    task = registry.load(TASKS, made.provenance["task"])
    made.resume()
    return _carry_out(task, parse(task.Config, made.config, where=str(path)), made)


def _carry_out(task: Any, config: Any, made: Run) -> Run:
    with made.working():
        task.run(config, made)
    return made


def compare(
    recipes: Sequence[str],
    data: str | Path | None = None,
    *,
    out: str | Path = "runs",
    seed: int | None = None,
    cache: bool | Path = True,
    budget: int | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Comparison:
    """Run several recipes on the same patients and rank them.

    All arms share split, seed and the store of frozen outputs. An arm that fails is named on
    the leaderboard with its error; the others go on.

    Args:
        recipes: Names or files.
        data: As for :func:`run`.
        out: Where the comparison folder is made.
        seed: As for :func:`run`.
        cache: As for :func:`run`.
        budget: Settings that each arm may try on the validation patients before its run; None
            runs the recipes as they stand.
        overrides: As for :func:`run`; what they fix is not searched.
        **options: As for :func:`run`.

    Raises:
        GalenicError: If every arm fails; the first error.
    """
    started = time.perf_counter()
    opened = [open_recipe(name) for name in recipes]
    names = _unique([recipe.recipe for recipe in opened])
    whole = Run.create(Path(out), "compare")
    whole.start({"recipes": list(recipes)}, recipe="compare", task="compare", command=command())
    if cache is True:
        cache = Path(out) / ".cache"
    options |= {"cache": cache, "seed": seed}
    finished: dict[str, tuple[Recipe, Run]] = {}
    failed: dict[str, GalenicError] = {}
    arms = sorted(zip(names, opened, recipes, strict=True), key=lambda arm: not _first(arm[1]))
    with whole.working():
        for name, recipe, given in arms:
            try:
                arm = _arm(whole, name, given, data, budget, list(overrides), out=out, **options)
            except GalenicError as error:
                failed[name] = error
            else:
                finished[name] = (recipe, arm)
            gc.collect()
            # What outlives it is loaded libraries: trainers collect often, and need not walk them.
            gc.freeze()
        if not finished:
            raise next(iter(failed.values()))
        board = board_of(finished, failed)
        board["seconds"] = time.perf_counter() - started
        whole.write_json("leaderboard.json", board)
    return Comparison(whole.path, board)


def _arm(
    whole: Run,
    name: str,
    recipe: str,
    data: str | Path | None,
    budget: int | None,
    overrides: list[str],
    *,
    out: str | Path,
    **options: Any,
) -> Run:
    """The run of one arm of a comparison, after its search where there is a budget for one."""
    if budget is not None:
        from galenic.launch.search import search

        place = whole.path / "search" / name
        overrides += search(recipe, data, budget, place, overrides=overrides, **options)
    place = whole.path / "arms" / name
    return run(recipe, data, out=out, path=place, overrides=overrides, **options)


def _first(recipe: Recipe) -> bool:
    """Whether what an arm keeps of the frozen network serves the others, so that it goes first."""
    method = (recipe.config.get("tuner") or {}).get("method")
    try:
        return method is not None and tuners.capabilities(method).reads_states
    except ConfigError:
        # The arm itself says that there is no such tuner.
        return False


def _unique(names: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        result.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return result


def command() -> list[str]:
    """The command line, as provenance keeps it."""
    # The interpreter's path says where a person keeps his files; the verb is what matters.
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
