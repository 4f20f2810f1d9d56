"""The leaderboard of finished runs on the same patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from galenic.core.errors import GalenicError
from galenic.core.recipes import Recipe
from galenic.core.run import Run

if TYPE_CHECKING:
    import pandas as pd


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
    if not (first.path / "predictions.parquet").is_file():
        return []
    import numpy as np
    import pandas as pd

    from galenic.evaluation.metrics import paired_difference

    kind = first.read_json("metrics.json")["kind"]
    config = first.config["score"]

    def read(name: str) -> pd.DataFrame:
        table = pd.read_parquet(finished[name][1].path / "predictions.parquet")
        return table[table["split"] == "test"].sort_values("row", kind="stable")

    def values(table: pd.DataFrame, prefix: str) -> Any:
        array = table.filter(regex=rf"^{prefix}(_\d+)?$").to_numpy()
        return array[:, 0] if array.shape[1] == 1 else array

    best = str(rows[0]["recipe"])
    reference = read(best)
    found = []
    for row in rows[1:]:
        other = read(row["recipe"])
        if not np.array_equal(other["row"], reference["row"]):
            continue
        difference = paired_difference(
            kind,
            metric,
            values(reference, "label"),
            values(reference, "score"),
            values(other, "score"),
            reference["group"].to_numpy(),
            resamples=config["resamples"],
            seed=first.provenance["seed"],
            level=config["level"],
        )
        found.append({"a": best, "b": row["recipe"], "metric": metric, **difference.to_dict()})
    return found
