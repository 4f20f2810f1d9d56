"""The leaderboard of finished runs on the same patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from galenic.core.errors import GalenicError
from galenic.core.recipes import Recipe
from galenic.core.run import Run

if TYPE_CHECKING:
    import pandas as pd

# Where masks were predicted: figures a case.
CASES = "cases.parquet"
PREDICTIONS = "predictions.parquet"


def board(
    finished: Mapping[str, tuple[Recipe, Run]], failed: Mapping[str, GalenicError]
) -> dict[str, Any]:
    """What `leaderboard.json` holds: arms best first, costs, paired differences to the best.

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
    rows.sort(key=lambda row: -sign * row["metrics"][metric]["value"])
    for row in rows:
        row["pareto"] = not any(_dominates(other, row, metric, sign) for other in rows)
    provenance = first.provenance
    return {
        "data": provenance["data"],
        "backbone": provenance["weights"]["backbone"],
        "metric": metric,
        "seed": provenance["seed"],
        "rows": rows,
        "failed": {name: error.message for name, error in failed.items()},
        "differences": _differences(rows, finished, metric, first),
    }


def _dominates(a: Mapping[str, Any], b: Mapping[str, Any], metric: str, sign: int) -> bool:
    def point(row: Mapping[str, Any]) -> tuple[float, float]:
        return sign * row["metrics"][metric]["value"], -float(row["cost"]["trainable"])

    pairs = list(zip(point(a), point(b), strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def _differences(
    rows: Sequence[Mapping[str, Any]],
    finished: Mapping[str, tuple[Recipe, Run]],
    metric: str,
    first: Run,
) -> list[dict[str, Any]]:
    """Every arm against the best, paired by patient; none where no patient was predicted."""
    of_masks = (first.path / CASES).is_file()
    name = CASES if of_masks else PREDICTIONS
    if not (first.path / name).is_file():
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
