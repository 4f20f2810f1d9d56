"""The leaderboard of finished runs on the same patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from galenic.core.errors import GalenicError
from galenic.core.progress import tell
from galenic.core.recipes import Recipe
from galenic.core.run import Run

if TYPE_CHECKING:
    import pandas as pd

# Where masks were predicted: figures a case.
CASES = "cases.parquet"
PREDICTIONS = "predictions.parquet"
UNDEFINED = "is not defined on the test patients: a class is missing there, or all are alike"


def board(
    finished: Mapping[str, tuple[Recipe, Run]], failed: Mapping[str, GalenicError]
) -> dict[str, Any]:
    """What `leaderboard.json` holds: arms best first, costs, paired differences to the best.

    An arm whose main metric is not defined on the test patients is last; `notes` says why.

    Args:
        finished: Recipe and run of each arm by name.
        failed: Error of each arm that did not finish.
    """
    from galenic.evaluation.metrics import greater_is_better

    first = next(iter(finished.values()))[1]
    metric = first.read_json("metrics.json")["main"]
    rows = [
        {
            "recipe": name,
            "title": recipe.title,
            "run": f"arms/{name}",
            "metrics": arm.read_json("metrics.json")["test"],
            "cost": arm.read_json("cost.json"),
        }
        for name, (recipe, arm) in finished.items()
    ]
    sign = 1 if greater_is_better(metric) else -1
    rows.sort(key=lambda row: -_point(row, metric, sign)[0])
    points = [_point(row, metric, sign) for row in rows]
    for row, point in zip(rows, points, strict=True):
        beaten = any(_dominates(other, point) for other in points)
        row["pareto"] = math.isfinite(point[0]) and not beaten
    valued = [row for row in rows if row["metrics"][metric]["value"] is not None]
    notes = {row["recipe"]: f"{metric} {UNDEFINED}" for row in rows if row not in valued}
    if notes:
        tell(f"{', '.join(notes)}: {metric} {UNDEFINED}.")
    provenance = first.provenance
    return {
        "data": provenance["data"],
        "backbone": provenance["weights"]["backbone"],
        "metric": metric,
        "seed": provenance["seed"],
        "rows": rows,
        "failed": {name: error.message for name, error in failed.items()},
        "notes": notes,
        "differences": _differences(valued, finished, metric, first),
    }


def _point(row: Mapping[str, Any], metric: str, sign: int) -> tuple[float, float]:
    """How good an arm is, and how cheap; what is not defined is worse than anything."""
    value = row["metrics"][metric]["value"]
    goodness = -math.inf if value is None else sign * value
    return goodness, -float(row["cost"]["trainable"])


def _dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def _differences(
    rows: Sequence[Mapping[str, Any]],
    finished: Mapping[str, tuple[Recipe, Run]],
    metric: str,
    first: Run,
) -> list[dict[str, Any]]:
    """Every arm against the best, paired by patient; none where no patient was predicted.

    Args:
        rows: Of arms whose metric is defined, best first.
        finished: Recipe and run of each arm by name.
        metric: The main one.
        first: A run that shows what all have.
    """
    of_masks = (first.path / CASES).is_file()
    name = CASES if of_masks else PREDICTIONS
    if not rows or not (first.path / name).is_file():
        return []
    import numpy as np

    from galenic.evaluation.masks import paired
    from galenic.evaluation.metrics import paired_difference

    tables = {str(row["recipe"]): _tested(finished[row["recipe"]][1], name) for row in rows}
    (best, reference), *others = tables.items()
    kind, config = first.read_json("metrics.json")["kind"], first.config["score"]
    options = {key: config[key] for key in ("resamples", "level")}
    options["seed"] = first.provenance["seed"]
    groups = reference["group"].to_numpy()

    def values(table: pd.DataFrame, prefix: str) -> Any:
        array = table.filter(regex=rf"^{prefix}(_\d+)?$").to_numpy()
        return array[:, 0] if array.shape[1] == 1 and not of_masks else array

    found = []
    for recipe, other in others:
        if not np.array_equal(other["row"], reference["row"]):
            continue
        if of_masks:
            gap = paired(values(reference, metric), values(other, metric), groups, **options)
        else:
            scores = values(reference, "score"), values(other, "score")
            true = values(reference, "label")
            gap = paired_difference(kind, metric, true, *scores, groups, **options)
        found.append({"a": best, "b": recipe, "metric": metric, **gap.to_dict()})
    return found


def _tested(run: Run, name: str) -> pd.DataFrame:
    """The rows of test patients in a table of a run, in the order of the manifest."""
    import pandas as pd

    table = pd.read_parquet(run.path / name)
    return table[table["split"] == "test"].sort_values("row", kind="stable")
