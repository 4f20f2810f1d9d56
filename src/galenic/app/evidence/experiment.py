"""`galenic evidence SLUG`: put the claim of a paper to the test, and write down what came out."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

import galenic
from galenic import launch
from galenic.core.config import Config, load_yaml, parse
from galenic.core.errors import ConfigError, DataError, GalenicError, nearest
from galenic.core.files import atomic_json
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.seeds import mean_interval
from galenic.evaluation.metrics import greater_is_better

PACKAGES = ("galenic", "torch", "transformers", "peft", "numpy", "scikit-learn")


class After(Config):
    """The arm that another one goes on from, on the same data and with the same seed."""

    arm: str
    key: str = Field("backbone", description="Key of the config that gets the folder of its run.")


class Arm(Config):
    """One column of an experiment."""

    name: str
    role: Literal["method", "baseline", "ablation", "control", "stage"] = Field(
        description="stage: run for other arms to go on from, and not compared."
    )
    recipe: str
    overrides: list[str] = Field([], description="{data} stands for the folder of the data sets.")
    after: After | None = Field(None, description="None begins with what the recipe names.")


class Data(Config):
    """One real cohort."""

    name: str
    source: str = Field(description="sample:NAME, or a manifest below GALENIC_DATA.")
    real: bool = True
    license: str
    columns: dict[str, Any] = {}
    overrides: list[str] = []
    labelled: list[str] = Field(
        [],
        description="Overrides of the arms that are no stage. Cohorts that differ in these alone, "
        "as the points of a learning curve do, share their stages.",
    )


class Expectation(Config):
    """The claim as an inequality: `a` is better than `b`, whichever way the metric points."""

    a: str
    b: str
    margin: float = Field(
        0.0, ge=0, description="By so much `a` may be worse: for a claim that is `as good as`."
    )


class Experiment(Config):
    """What `evidence/SLUG.yaml` says."""

    slug: str
    claim: str
    data: list[Data]
    backbone: dict[str, str]
    metric: str
    seeds: list[int] = Field(min_length=3)
    arms: list[Arm]
    expect: list[Expectation]
    control_ceiling: float = Field(
        description="The control must be worse than this value: below it, or above where smaller is better."
    )
    note: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> Experiment:
        before: set[str] = set()
        for arm in self.arms:
            if arm.after is not None and arm.after.arm not in before:
                raise ValueError(f"'{arm.name}' goes on from '{arm.after.arm}', no arm before it")
            before.add(arm.name)
        return self

    @property
    def compared(self) -> list[Arm]:
        """The arms that have a row."""
        return [arm for arm in self.arms if arm.role != "stage"]


def run_experiment(slug: str, folder: Path, data_root: Path, out: Path) -> Path:
    """Run every arm on every seed, and write `results/SLUG.json` below `folder`.

    A run that the same code already finished with the same settings is read, not repeated: arms
    are shared between experiments, and what was cut off goes on.

    Args:
        slug: Name of the method.
        folder: Holds `SLUG.yaml`.
        data_root: Where manifests of the data sets lie.
        out: Where the runs are kept.

    Raises:
        ConfigError: If there is no such experiment.
    """
    result = _measure(_read(slug, folder), out, data_root)
    target = folder / "results" / f"{slug}.json"
    target.parent.mkdir(exist_ok=True)
    atomic_json(target, result)
    return target


def rehearse(slug: str, folder: Path, data_root: Path) -> None:
    """Run every arm once on every cohort with a few samples and steps, and keep nothing.

    What an arm lacks shows in a minute and not after the hours of those before it.

    Raises:
        ConfigError: If there is no such experiment.
        GalenicError: Of the first arm that fails, with its name.
    """
    experiment = _read(slug, folder)
    with tempfile.TemporaryDirectory() as out:
        for data in experiment.data:
            began = time.monotonic()
            short = data.model_copy(update={"overrides": [*data.overrides, "quick=true"]})
            done: dict[str, Run] = {}
            for arm in experiment.arms:
                seed = experiment.seeds[0]
                done[arm.name] = _once(short, arm, seed, done, data_root, Path(out))
            tell(f"{data.name}: {len(done)} arms run, {time.monotonic() - began:.0f} s.")


def _read(slug: str, folder: Path) -> Experiment:
    path = folder / f"{slug}.yaml"
    if not path.is_file():
        known = [found.stem for found in folder.glob("*.yaml")]
        raise ConfigError(f"There is no experiment '{slug}'. {nearest(slug, known)}".strip())
    return parse(Experiment, load_yaml(path), where=path.name)


def _measure(experiment: Experiment, out: Path, data_root: Path) -> dict[str, Any]:
    runs: dict[tuple[str, str], list[Any]] = {}
    rounds = list(itertools.product(experiment.data, experiment.seeds))
    for number, (data, seed) in enumerate(rounds, start=1):
        began = time.monotonic()
        done: dict[str, Run] = {}
        for arm in experiment.arms:
            run = done[arm.name] = _once(data, arm, seed, done, data_root, out)
            runs.setdefault((data.name, arm.name), []).append(
                (run.read_json("metrics.json"), run.read_json("cost.json"), run.provenance)
            )
        minutes = (time.monotonic() - began) / 60
        tell(f"{data.name}, seed {seed}: round {number} of {len(rounds)}, {minutes:.1f} min.")
    single = len(experiment.data) == 1
    arms = [
        _arm_row(arm, runs[data.name, arm.name], "" if single else data.name)
        for data in experiment.data
        for arm in experiment.compared
    ]
    comparisons = [
        _difference(experiment, pair, runs, data.name, single)
        for data in experiment.data
        for pair in experiment.expect
    ]
    control = [row for row in arms if row["role"] == "control"]
    verdict, because = _verdict(experiment, comparisons, control)
    return {
        "slug": experiment.slug,
        "claim": experiment.claim,
        "command": f"galenic evidence {experiment.slug}",
        "versions": _versions(),
        "data": [_data_row(data, runs, experiment) for data in experiment.data],
        "backbone": dict(experiment.backbone),
        "seeds": experiment.seeds,
        "metric": experiment.metric,
        "arms": arms,
        "comparisons": comparisons,
        "verdict": verdict,
        "because": because,
        "note": experiment.note,
    }


def _once(data: Data, arm: Arm, seed: int, done: Mapping[str, Run], root: Path, out: Path) -> Run:
    """The finished run of one arm and seed, from `out` where it is there already."""
    source = data.source if ":" in data.source else str(root / data.source)
    labelled = data.labelled if arm.role != "stage" else []
    named = (*data.overrides, *labelled, *arm.overrides)
    overrides = [text.replace("{data}", str(root)) for text in named]
    if arm.after is not None:
        overrides.append(f"{arm.after.key}={done[arm.after.arm].path}")
    manifest = Path(source)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
    asked = [_code(), arm.recipe, source, digest, overrides, data.columns, seed]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    path = out / key
    if path.exists() and Run.open(path).state == "finished":
        return Run.open(path)
    try:
        if path.exists():
            run = launch.run(arm.recipe, resume=path)
        else:
            run = launch.run(
                arm.recipe,
                source,
                overrides=overrides,
                columns=data.columns,
                seed=seed,
                out=out,
                path=path,
            )
    except GalenicError as error:
        where = ", ".join(filter(None, [f"arm '{arm.name}' on '{data.name}'", error.where]))
        raise type(error)(
            error.found, where=where, expected=error.expected, next_step=error.next_step
        ) from error
    # A finished run needs none, and dozens of runs fill a disk.
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return run


def _code() -> str:
    """A fingerprint of this package: another code, another run."""
    root = Path(galenic.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        if "app" not in path.relative_to(root).parts[:1]:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _arm_row(arm: Arm, runs: Sequence[Any], data: str) -> dict[str, Any]:
    found = {
        name: [metrics["test"][name]["value"] for metrics, _, _ in runs]
        for name in runs[0][0]["test"]
    }
    # What a test part cannot tell, such as how many of no healthy patients were found, is null.
    metrics = {name: mean_interval(v) for name, v in found.items() if None not in v}
    costs = [cost for _, cost, _ in runs]
    row: dict[str, Any] = {"name": arm.name, "role": arm.role, "metrics": metrics}
    row |= {
        key: statistics.fmean(cost[key] for cost in costs)
        for key in ("trainable_share", "peak_memory_mb", "seconds")
    }
    return row | ({"data": data} if data else {})


def _difference(
    experiment: Experiment,
    pair: Expectation,
    runs: Mapping[tuple[str, str], Sequence[Any]],
    data: str,
    single: bool,
) -> dict[str, Any]:
    metric = experiment.metric

    def values(name: str) -> list[float]:
        found = [metrics["test"][metric]["value"] for metrics, _, _ in runs[data, name]]
        blank = [seed for seed, v in zip(experiment.seeds, found, strict=True) if v is None]
        if blank:
            raise DataError(
                f"Seed {blank[0]} has no {metric}: it is not defined on its test patients.",
                where=f"arm '{name}' on '{data}'",
                expected="every class among the test patients of each seed",
                next_step="Choose other seeds or a larger test part; finished runs are read again.",
            )
        return found

    sign = 1 if greater_is_better(metric) else -1
    gaps = [sign * (x - y) for x, y in zip(values(pair.a), values(pair.b), strict=True)]
    interval = mean_interval(gaps)
    row = {"a": pair.a, "b": pair.b, "metric": metric, "difference": interval["value"]}
    row |= {"low": interval["low"], "high": interval["high"], "margin": pair.margin}
    return row | ({} if single else {"data": data})


def _verdict(
    experiment: Experiment,
    comparisons: Sequence[Mapping[str, Any]],
    control: Sequence[Mapping[str, Any]],
) -> tuple[str, str]:
    sign = 1 if greater_is_better(experiment.metric) else -1
    for row in control:
        value = row["metrics"][experiment.metric]["value"]
        if sign * value > sign * experiment.control_ceiling:
            return "undecided", f"The control '{row['name']}' reached {value:.3f}: a leak."
    against = [row for row in comparisons if row["high"] < -row["margin"]]
    for_it = [row for row in comparisons if row["low"] > -row["margin"]]
    words = "; ".join(
        f"{row['a']} - {row['b']}{' on ' + row['data'] if 'data' in row else ''}: "
        f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        f"{' (margin ' + format(row['margin'], 'g') + ')' if row['margin'] else ''}"
        for row in comparisons
    )
    if against:
        return "does_not_hold", words
    return ("holds" if len(for_it) == len(comparisons) else "undecided"), words


def _data_row(data: Data, runs: Mapping[Any, Any], experiment: Experiment) -> dict[str, Any]:
    described = runs[data.name, experiment.compared[0].name][0][2]["data"]
    return {
        "name": data.name,
        "real": data.real,
        "samples": described["n"],
        "groups": described["patients"],
        "license": data.license,
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
