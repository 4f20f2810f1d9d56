"""`galenic check --headers` on an archive of DICOM, against pydicom reading headers alone."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pydicom

from benchmarks.harness import alternate, write_result
from galenic.data import seen
from galenic.data.cohort import Cohort

FILES = 2000


def main() -> None:
    """Measure, check that both sides saw the same, write the result."""
    work = Path(tempfile.mkdtemp())
    sources = [Path(pydicom.examples.get_path(name)) for name in ("ct", "mr")]
    for place in range(FILES):
        shutil.copy(sources[place % 2], work / f"{place}.dcm")
    names = [f"{place}.dcm" for place in range(FILES)]
    table = pd.DataFrame({"file": names, "label": ["ct", "mr"] * (FILES // 2)})
    cohort = Cohort.open(table, root=work)
    sizes: dict[str, set[tuple[int, ...]]] = {}

    def ours() -> None:
        sizes["ours"] = {shape[-2:] for shape in seen.headers(cohort).shapes}

    def bare() -> None:
        headers = [pydicom.dcmread(work / name, stop_before_pixels=True) for name in names]
        sizes["peer"] = {(int(header.Rows), int(header.Columns)) for header in headers}

    times = alternate(ours, bare)
    write_result(
        name="dicom_headers",
        unit="s",
        times=times,
        peer={"name": "pydicom.dcmread(stop_before_pixels=True)", "version": pydicom.__version__},
        reach="at most 1/0.8",
        met=lambda ratio: ratio <= 1 / 0.8,
        same_result=f"{FILES} files, the same sizes: {sizes['ours'] == sizes['peer']}",
    )
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
