"""ECG records that have a report.

    python evidence/prepare/reported_ecgs.py SOURCE TARGET

SOURCE holds the 500 records of PTB-XL and `records.csv`. TARGET gets the records and those rows of
the manifest whose report is not empty: all but one.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd


def main(source: Path, target: Path) -> None:
    """Copy and list."""
    table = pd.read_csv(source / "records.csv")
    shutil.copytree(source / "records100", target / "records100", dirs_exist_ok=True)
    table[table["report"].str.strip() != ""].to_csv(target / "records.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
