"""Stays of PhysioNet 2012 with a vital sign and a laboratory value at least.

    python evidence/prepare/measured_stays.py SOURCE TARGET

SOURCE holds `set-a.csv.gz`. TARGET gets `set-a.csv`, the stays that have something in each of the
tables that `evidence/mm-lego.yaml` names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import yaml

EXPERIMENT = Path(__file__).resolve().parents[1] / "mm-lego.yaml"


def main(source: Path, target: Path) -> None:
    """Read, leave out, write."""
    table = pd.read_csv(source / "set-a.csv.gz")
    stays = next(d for d in yaml.safe_load(EXPERIMENT.read_text())["data"] if "stays" in d["name"])
    for override in stays["overrides"]:
        key, value = override.split("=", 1)
        if key.startswith("tables."):
            table = table[table[yaml.safe_load(value)].notna().any(axis=1)]
    target.mkdir(parents=True, exist_ok=True)
    table.to_csv(target / "set-a.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
