"""Merge finished runs into one network: coefficients swept on their validation rows, or a soup."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galenic import launch
from galenic.core.config import dump_yaml, load_yaml
from galenic.core.errors import ConfigError
from galenic.core.files import atomic_write
from galenic.core.run import Run
from galenic.merging import grid as grids
from galenic.merging.recipe import Recipe, check, read
from galenic.merging.soup import greedy

if TYPE_CHECKING:
    from galenic.tasks._panel import Panel

# What of a recipe has a meaning where the models are runs.
KEYS = {"method", "base_model", "models", "parameters", "seed"}


def of_runs(path: Path) -> bool:
    """Whether a recipe file names run folders, and not checkpoints."""
    models = load_yaml(path).get("models")
    names = [] if not isinstance(models, list) else [_named(model) for model in models]
    return any(
        (place / "status.json").is_file()
        for name in names
        for place in (Path(name), path.parent / name)
    )


def _named(model: Any) -> str:
    return str(model.get("model") if isinstance(model, Mapping) else model)


def merge_runs(
    recipe: Path,
    out: Path,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    on: Sequence[Path] = (),
    soup: bool = False,
    resamples: int = 2000,
) -> Run:
    """Merge the networks of finished runs, each judged under its own head on its own rows.

    Args:
        recipe: A recipe of `galenic merge` whose models are run folders; their base is known.
        out: The new run folder; as a backbone it is the merged network.
        grid: Values that are tried, by coefficient; the best mean of normalised validation
            figures is kept, and test figures are computed for that one alone.
        on: Runs that judge too, and are not merged.
        soup: Keep only what makes the mean no worse (Wortsman et al., algorithm 1); the runs are
            variants of one task, and their heads are averaged too.
        resamples: Of the intervals of test figures.

    Raises:
        ConfigError: If the recipe, or what it asks of these runs, is wrong.
        WeightsError: If the runs did not start from one network.
        RunError: If `out` exists.
    """
    parsed, runs = _opened(recipe)
    _check(parsed, runs, grid, on, soup)
    judges = {**runs, **{place.name: Run.open(place) for place in on}}
    if len(judges) != len(runs) + len(on):
        raise ConfigError("A run that judges is called as one that is merged.", where="--on")
    told = {
        "recipe": parsed.model_dump(mode="json", exclude={"notes"}),
        "grid": dict(grid or {}),
        "on": [str(place) for place in on],
        "greedy": soup,
    }
    made = Run.create(out.parent, out.name, path=out)
    try:
        weights = next(iter(runs.values())).provenance["weights"]
        made.start(
            told, recipe="merge", task="merged", command=launch.command(), seed=parsed.seed,
            weights=weights,
        )  # fmt: skip
        document = _fill(made, parsed, runs, judges, grid or {}, soup, resamples)
        made.write_json("sweep.json", document)
        made.write_text("recipe.yaml", dump_yaml(_kept(parsed, runs, document, out)))
    except BaseException:
        # As a merge of checkpoints: whole, or not there.
        shutil.rmtree(out, ignore_errors=True)
        raise
    made.finish()
    return made


def _fill(
    made: Run,
    recipe: Recipe,
    runs: Mapping[str, Run],
    judges: Mapping[str, Run],
    grid: Mapping[str, Sequence[float]],
    soup: bool,
    resamples: int,
) -> dict[str, Any]:
    """Write the merged network and the heads, and give what `sweep.json` holds."""
    from galenic.evaluation.protocol import ScoreConfig
    from galenic.tasks._panel import Panel

    panel = Panel(judges, made.path / "work", heads=soup)
    document = _soup(panel, list(runs)) if soup else _sweep(panel, recipe, list(runs), grid)
    scored = document["chosen_on"]
    test = panel.test(scored, ScoreConfig(resamples=resamples), recipe.seed)
    _save(panel, scored, made.path)
    shutil.rmtree(made.path / "work")
    return {"method": recipe.method, "scored": scored, **document, "test": test}


def _kept(
    recipe: Recipe, runs: Mapping[str, Run], document: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """The recipe with what was chosen, as it would stand in `out`."""
    models = [
        {**model.model_dump(), "name": name, "model": os.path.relpath(runs[name].path, out)}
        for name, model in zip(runs, recipe.models, strict=True)
        if name in document["merged"]
    ]
    parameters = {**recipe.parameters, **document["chosen"]}
    kept = recipe.model_dump(mode="json", include=KEYS)
    return {**kept, "models": models, "parameters": parameters}


def _opened(path: Path) -> tuple[Recipe, dict[str, Run]]:
    """The recipe, with the base that its runs started from, and the runs by name."""
    from galenic.merging.folders import locate

    values = load_yaml(path)
    unknown = sorted(set(values) - KEYS)
    if unknown:
        raise ConfigError(
            f"'{unknown[0]}' has no meaning where the models are runs.",
            where=f"recipe file {path.name}",
            expected=", ".join(sorted(KEYS)),
        )
    runs = [Run.open(locate(_named(model), path.parent)) for model in values["models"]]
    base = runs[0].provenance["weights"]["backbone"]
    if values.setdefault("base_model", base) != base:
        raise ConfigError(
            f"base_model is '{values['base_model']}', and the runs started from '{base}'.",
            where=f"recipe file {path.name}",
            next_step="Leave base_model out.",
        )
    recipe = read(values)
    return recipe, dict(zip(recipe.keys(), runs, strict=True))


def _check(
    recipe: Recipe,
    runs: Mapping[str, Run],
    grid: Mapping[str, Sequence[float]] | None,
    on: Sequence[Path],
    soup: bool,
) -> None:
    if soup and (recipe.method != "linear" or grid or on):
        raise ConfigError(
            "A greedy soup is a plain mean: it has no coefficients, and one task to judge it.",
            where="--greedy",
            expected="method: linear, without --sweep and --on",
        )
    if soup:
        _require_one_task(list(runs.values()))
    for settings in grids.points(grid or {}):
        check(recipe.model_copy(update={"parameters": {**recipe.parameters, **settings}}))


def _sweep(
    panel: Panel, recipe: Recipe, names: Sequence[str], grid: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    each = {name: model.parameters for name, model in zip(names, recipe.models, strict=True)}
    how: dict[str, Any] = {"each": each, "seed": recipe.seed}
    points, judges = grids.points(grid), list(panel.experts)
    rows, best = panel.sweep(recipe.method, names, points, judges, recipe.parameters, **how)
    panel.put(recipe.method, names, {**recipe.parameters, **best["settings"]}, **how)
    return {
        "merged": list(names),
        "chosen_on": judges,
        "chosen": best["settings"],
        "best": best,
        "points": rows,
    }


def _soup(panel: Panel, names: Sequence[str]) -> dict[str, Any]:
    judge = panel.experts[panel.judges(names[:1])[0]]

    def score(members: Sequence[str]) -> float:
        panel.put("linear", members, {})
        return judge.normalised("val")

    found = greedy({name: score([name]) for name in names}, score)
    score(found.members)
    rows: list[dict[str, Any]] = [
        {"settings": {"models": list(members)}, "normalised": {names[0]: value}, "mean": value}
        for members, value in found.tried
    ]
    return {
        "merged": list(found.members),
        "chosen_on": [names[0]],
        "chosen": {},
        "best": next(row for row in rows if row["settings"]["models"] == list(found.members)),
        "points": rows,
    }


def _require_one_task(runs: Sequence[Run]) -> None:
    """A soup's parts must not have trained on the rows that judge it."""

    def task(run: Run) -> list[Any]:
        data, parts = run.provenance["data"], run.read_json("splits.json")
        return [data["fingerprint"], data.get("classes"), parts["train"], parts["val"]]

    for run in runs[1:]:
        if task(run) != task(runs[0]):
            raise ConfigError(
                f"'{run.path.name}' and '{runs[0].path.name}' are not of one task, or were trained "
                "on other rows.",
                where="--greedy",
                expected="runs on one cohort with one seed and split",
                next_step="To merge several tasks, leave --greedy out.",
            )


def _save(panel: Panel, scored: Sequence[str], out: Path) -> None:
    """The merged network, as a run of full fine-tuning keeps it, and the heads beside it."""
    from safetensors.torch import save

    from galenic import tuners

    backbone = panel.experts[scored[0]].job.backbone
    full = tuners.parse_tuner({"method": "full"})
    tuners.attach(backbone, full)
    tuners.save(backbone, full, out / "adapter")
    for name in scored:
        state = panel.experts[name].job.objective.head.state_dict()
        atomic_write(out / "heads" / f"{name.replace('/', '_')}.safetensors", save(state))
