"""Leave one site out: how good each recipe is in a hospital it has never seen."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galenic.core.errors import ConfigError, DataError
from galenic.core.recipes import open_recipe
from galenic.core.run import Run
from galenic.core.seeds import mean_interval
from galenic.data.cohort import Cohort
from galenic.data.labels import missing
from galenic.launch.repeats import begin, carried_out, changed, repeat, require_own, taken_up, tidy

# With two sites a model is trained on one: that says nothing about sites.
FEWEST = 3
# What columns of sites are called; the nearest to one of these is proposed.
WORDS = ("site", "hospital", "centre", "device", "scanner", "manufacturer", "institution", "region")
ALIKE = 0.8
# Keys of the recipes that it sets itself.
OWN = ("split.how", "split.site")


def sites(
    recipes: Sequence[str],
    data: str | Path,
    *,
    seeds: int = 3,
    smallest: int = 1,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Hold out each site in turn, run every recipe on the others, and write `sites.json`.

    Settings are chosen on validation patients of the training sites (training-domain
    validation; Gulrajani and Lopez-Paz, ICLR 2021). The worst site is that of each seed.

    Args:
        recipes: Names or files.
        data: Manifest with a column of sites.
        seeds: How many draws, 2 or more.
        smallest: Sites of fewer labelled samples are trained on and never held out.
        out: Where the folder is made.
        overrides: As for `run`.
        columns: As for `run`; `site` names the column.
        **options: As for `run`.

    Raises:
        ConfigError: If there are fewer than two seeds, or overrides of what it sets itself.
        DataError: If there is no site column, or fewer than three sites to hold out, or one of
            them lacks a class.
        GalenicError: If a run fails; the folder then says `failed`.
    """
    if seeds < 2:
        raise ConfigError(f"{seeds} seed gives no interval.", expected="at least 2 seeds")
    require_own("sites", OWN, overrides)
    for name in recipes:
        open_recipe(name)
    columns = {key: value for key, value in (columns or {}).items() if value is not None}
    cohort = Cohort.open(data, **columns)
    held = held_out(cohort, smallest)
    options.setdefault("cache", str(Path(out) / ".cache"))
    told = {
        "recipes": list(recipes),
        "data": str(data),
        "fingerprint": cohort.fingerprint,
        "columns": columns,
        "sites": held,
        "smallest": smallest,
        "seeds": seeds,
        "overrides": list(overrides),
        "options": options,
    }
    return carried_out(begin("sites", told, out), _carry_out)


def resume(path: str | Path) -> Run:
    """Go on with what was cut off; what it finished is read, not repeated.

    Raises:
        ConfigError: If the folder is no such folder.
        DataError: If the cohort is no longer the one it began with.
        GalenicError: As for :func:`sites`; or if it is finished.
    """
    return carried_out(taken_up("sites", path), _go_on)


def _go_on(whole: Run) -> None:
    told = whole.config
    if Cohort.open(told["data"], **told["columns"]).fingerprint != told["fingerprint"]:
        raise changed(Path(told["data"]).name)
    _carry_out(whole)


def _carry_out(whole: Run) -> None:
    started = time.perf_counter()
    told = whole.config
    points, summary = [], []
    for given in told["recipes"]:
        name = open_recipe(given).recipe
        values = []
        for site in told["sites"]:
            # JSON text is YAML text, whatever a site is called.
            quoted = json.dumps(site, ensure_ascii=False)
            left = [*told["overrides"], "split.how=leave_site_out", f"split.site={quoted}"]
            found = repeat(
                whole, given, told["data"], seeds=told["seeds"], overrides=left,
                columns=told["columns"], **told["options"],
            )  # fmt: skip
            whole.log({"event": "point", "recipe": name, "site": site, "values": found.values})
            points.append({"recipe": name, "site": site, **mean_interval(found.values)})
            values.append(found.values)
        summary.append({"recipe": name, **over_sites(values, found.metric)})
    whole.write_json(
        "sites.json",
        {
            "data": found.provenance["data"],
            "backbone": found.provenance["weights"]["backbone"],
            "metric": found.metric,
            "sites": told["sites"],
            "points": points,
            "summary": summary,
            "seconds": time.perf_counter() - started,
        },
    )
    tidy(whole)


def over_sites(values: Sequence[Sequence[float]], metric: str) -> dict[str, Any]:
    """Mean and worst site, each with Student's interval over seeds.

    Args:
        values: Figures [sites, seeds].
        metric: Decides which is worst.
    """
    from galenic.evaluation.metrics import greater_is_better

    table = np.asarray(values)
    worst = table.min(0) if greater_is_better(metric) else table.max(0)
    return {"mean": mean_interval(table.mean(0).tolist()), "worst": mean_interval(worst.tolist())}


def held_out(cohort: Cohort, smallest: int) -> list[str]:
    """Names of the sites that can be the test part.

    Raises:
        DataError: If there is no site column, there are fewer than three such sites, or one of
            them lacks a class.
    """
    columns = list(cohort.table.columns)
    if cohort.site_column is None:
        raise DataError(
            f"The cohort has no column of sites. {_likely(columns)}".strip(),
            where=cohort.name,
            expected=f"one of: {', '.join(map(str, columns[:30]))}",
            next_step="--site COLUMN",
        )
    names = cohort.sites
    targets = cohort.targets()
    counts = names.iloc[np.flatnonzero(~missing(targets))].value_counts()
    found = sorted(counts[counts >= smallest].index)
    if len(found) < FEWEST:
        raise DataError(
            f"Column '{cohort.site_column}' has {len(found)} site(s) of at least {smallest} "
            "labelled samples.",
            where=cohort.name,
            expected=f"at least {FEWEST}",
            next_step="Name another column with --site, or lower --smallest.",
        )
    _require_classes(cohort, targets, names, found)
    return found


def _likely(columns: Sequence[str]) -> str:
    """The column whose name is nearest to what columns of sites are called, as a question."""

    def likeness(name: str) -> float:
        inside = any(word in name.lower() for word in WORDS)
        parts = (SequenceMatcher(None, word, name.lower()).ratio() for word in WORDS)
        return 1.0 if inside else max(parts)

    best = max(map(str, columns), key=likeness)
    return f"Did you mean '{best}'?" if likeness(best) >= ALIKE else ""


def _require_classes(
    cohort: Cohort, targets: np.ndarray[Any, Any], names: pd.Series, held: Sequence[str]
) -> None:
    """Every site must be asked the same: figures on other classes are no figures of one thing.

    Raises:
        DataError: Naming sites and classes.
    """
    label = cohort.label
    if label is None or label.kind == "continuous":
        return
    faults = []
    for site in held:
        own = targets[(names == site).to_numpy()]
        if label.kind == "multilabel":
            seen = [len(np.unique(column[~np.isnan(column)])) == 2 for column in own.T]
        else:
            seen = np.isin(np.arange(len(label.classes)), own).tolist()
        both = zip(label.classes, seen, strict=True)
        lacking = [f"'{name}'" for name, there in both if not there]
        if lacking:
            faults.append(f"'{site}' lacks {', '.join(lacking[:5])}")
    if faults:
        raise DataError(
            f"{len(faults)} site(s) cannot be tested on every class: {'; '.join(faults[:5])}.",
            where=f"{cohort.name}, column '{cohort.site_column}'",
            expected="every class in each site that is held out",
            next_step="Hold out larger sites alone: --smallest N. Or leave those classes out.",
        )
