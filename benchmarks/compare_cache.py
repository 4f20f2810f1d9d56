"""Six recipes with a wholly or partly frozen backbone: one compare against six lone runs."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from benchmarks.harness import alternate, write_result
from galenic import launch

DATA = "sample:icd10"
ARMS = ["knn", "linear", "lst", "unipt", "lora", "ssf"]
# What differs from the recipes: side networks for fewer epochs, tuners in the last block only.
SIDE = {"schedule": {"epochs": 5}}
LAST = {"tuner": {"last_blocks": 1}}
CHANGES = {"lst": SIDE, "unipt": SIDE, "lora": LAST, "ssf": LAST}


def recipes(folder: Path) -> list[str]:
    """The six recipes; the backbone of four is wholly frozen, of two but for its last block."""
    from galenic.core.config import dump_yaml, merge
    from galenic.core.recipes import open_recipe

    found = []
    for name in ARMS:
        recipe = open_recipe(name).model_dump(mode="json")
        recipe = merge(recipe, {"config": CHANGES.get(name, {})})
        path = folder / f"{name}.yaml"
        path.write_text(dump_yaml(recipe))
        found.append(str(path))
    return found


def metrics(path: Path) -> dict[str, float]:
    """Every metric of one run on the test patients."""
    document = json.loads((path / "metrics.json").read_text())
    return {name: estimate["value"] for name, estimate in document["test"].items()}


def main() -> None:
    """Measure, check that both sides score the same, write the result."""
    work = Path(tempfile.mkdtemp())
    files = recipes(work)
    kept: dict[str, dict[str, dict[str, float]]] = {}

    def together() -> None:
        out = Path(tempfile.mkdtemp(dir=work))
        done = launch.compare(files, DATA, out=out)
        kept["ours"] = {name: metrics(done.path / "arms" / name) for name in ARMS}

    def one_by_one() -> None:
        out = Path(tempfile.mkdtemp(dir=work))
        kept["peer"] = {
            name: metrics(launch.run(file, DATA, out=out, cache=False).path)
            for name, file in zip(ARMS, files, strict=True)
        }

    times = alternate(together, one_by_one, rounds=5, warmup=0)
    gap = max(
        abs(value - kept["peer"][name][metric])
        for name in ARMS
        for metric, value in kept["ours"][name].items()
    )
    write_result(
        name="compare_cache",
        unit="s",
        times=times,
        peer={"name": "the same six recipes run one by one without the cache", "version": "0.1.0"},
        reach="at most 1/3",
        met=lambda ratio: ratio <= 1 / 3,
        same_result=f"largest difference of any metric of any arm: {gap:.1e}",
    )
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
