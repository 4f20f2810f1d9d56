"""The same budget for every arm: settings tried on validation patients, by Optuna."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from galenic import launch
from galenic.core.errors import ConfigError, DataError, GalenicError, MissingExtraError
from galenic.core.files import atomic_json
from galenic.core.recipes import Range, Recipe, open_recipe


def search(
    recipe: str,
    data: str | Path | None,
    budget: int,
    place: Path,
    *,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> list[str]:
    """Overrides of the best of `budget` settings, by the main metric on validation patients.

    The first setting is the recipe's own, so that a search is never worse than none on the
    patients it looks at. Test patients are not looked at.

    Args:
        recipe: Name or file; its key `search` says what may vary.
        data: As for `run`.
        budget: Runs to try.
        place: Gets `search.json`, with every setting and what it gave.
        seed: Of the sampler, the split and the runs.
        overrides: What the user fixed; it is not varied.
        **options: As for `run`.

    Raises:
        ConfigError: If the recipe has nothing to search, or the budget is not positive.
        DataError: If validation patients cannot tell settings apart, as where they lack a class.
        GalenicError: If every setting failed; the first error.
    """
    opened = open_recipe(recipe)
    fixed = {word.partition("=")[0] for word in overrides}
    space = {key: value for key, value in opened.search.items() if key not in fixed}
    if budget < 1:
        raise ConfigError(f"A budget of {budget} settings tries nothing.", expected="1 or more")
    if not space:
        raise ConfigError(
            f"Recipe '{opened.recipe}' has nothing to search.",
            expected="a key `search` in the recipe, with keys and their ranges",
            next_step=f"galenic cp {opened.recipe} mine.yaml, and add it",
        )
    from galenic.evaluation.metrics import greater_is_better

    study, distributions = _study(space, opened, seed or 0)
    tried: list[dict[str, Any]] = []
    errors: list[GalenicError] = []
    up = True
    for number in range(budget):
        trial = study.ask(distributions)
        words = [f"{key}={value}" for key, value in trial.params.items()]
        path = place / f"trial-{number}"
        row: dict[str, Any] = {"settings": dict(trial.params)}
        try:
            done = launch.run(
                recipe,
                data,
                seed=seed,
                path=path,
                overrides=[*overrides, *words, "score.resamples=0"],
                **options,
            )
            metrics = done.read_json("metrics.json")
            up = greater_is_better(metrics["main"])
            row["value"] = metrics["validation"][metrics["main"]]["value"]
            if row["value"] is None:
                raise DataError(
                    f"{metrics['main']} is not defined on the validation patients.",
                    expected="every class among them, or values that differ",
                    next_step="Give validation more patients: split.val=0.3. Or leave out --budget.",
                )
            study.tell(trial, row["value"] if up else -row["value"])
        except GalenicError as error:
            errors.append(error)
            row["error"] = error.message
            study.tell(trial, state=_failed())
        shutil.rmtree(path, ignore_errors=True)
        tried.append(row)
        atomic_json(place / "search.json", {"budget": budget, "tried": tried})
    valued = [row for row in tried if row.get("value") is not None]
    if not valued:
        raise errors[0]
    best = max(valued, key=lambda row: row["value"] if up else -row["value"])
    return [f"{key}={value}" for key, value in best["settings"].items()]


def _study(space: Mapping[str, Range | list[Any]], recipe: Recipe, seed: int) -> tuple[Any, Any]:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError.of("optuna", "sweep") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {
        key: optuna.distributions.FloatDistribution(value.low, value.high, log=value.log)
        if isinstance(value, Range)
        else optuna.distributions.CategoricalDistribution(value)
        for key, value in space.items()
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    own = {key: _at(recipe.config, key) for key in space}
    study.enqueue_trial({key: value for key, value in own.items() if value is not None})
    return study, distributions


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL
