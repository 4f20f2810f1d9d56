"""A cohort of WFDB records through galenic's loader, against wfdb.rdsamp in a loop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wfdb
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import alternate, write_result
from galenic.data.cohort import Cohort

DATA = Path(os.environ.get("GALENIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
MANIFEST = DATA / "ptbxl_500" / "records.csv"
COLUMN = "filename_lr"


class Tracings(Dataset[np.ndarray[Any, Any]]):
    """The samples of each record."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, row: int) -> np.ndarray[Any, Any]:
        return self.cohort.read(row)[COLUMN].samples


def main() -> None:
    """Measure with one worker that reads ahead and with none, check the values, write both."""
    names = pd.read_csv(MANIFEST)[COLUMN]
    paths = [str(MANIFEST.parent / name) for name in names]
    cohort = Cohort.open(MANIFEST, inputs=[COLUMN], label="sex")
    read: dict[str, list[np.ndarray[Any, Any]]] = {}

    def bare() -> None:
        read["peer"] = [wfdb.rdsamp(path)[0] for path in paths]

    for workers in (1, 0):

        def ours(workers: int = workers) -> None:
            loader = DataLoader(Tracings(cohort), batch_size=None, num_workers=workers)
            read["ours"] = [np.asarray(samples) for samples in loader]

        times = alternate(ours, bare)
        pairs = zip(read["ours"], read["peer"], strict=True)
        same = all(np.array_equal(a, b.T.astype(np.float32)) for a, b in pairs)
        write_result(
            name="wfdb_cohort" if workers else "wfdb_cohort_alone",
            unit="s",
            times=times,
            peer={"name": "wfdb.rdsamp in a loop", "version": wfdb.__version__},
            reach="at most 1.0",
            met=lambda ratio: ratio <= 1.0,
            same_result=f"{len(paths)} records of twelve leads, "
            f"{'one process reads ahead' if workers else 'no process beside'}; "
            f"the same values bit by bit: {same}",
            module="wfdb_cohort",
        )


if __name__ == "__main__":
    main()
