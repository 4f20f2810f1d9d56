"""What `check` says of classes: balance, patients, copies with two labels, the order of grades."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from galenic.data.check import check
from galenic.data.cohort import Cohort


def codes(table: pd.DataFrame, **columns: Any) -> dict[str, str]:
    cohort = Cohort.open(table, inputs=["note"], label="label", patient_id="patient_id", **columns)
    return {finding.code: finding.message for finding in check(cohort).findings}


def notes(labels: list[str], patients: list[int] | None = None) -> pd.DataFrame:
    rows = range(len(labels))
    return pd.DataFrame(
        {"note": [f"note {row}" for row in rows], "label": labels, "patient_id": patients or rows}
    )


def test_a_rare_class_and_one_of_few_patients_are_told_with_counts() -> None:
    found = codes(notes(["benign"] * 60 + ["malignant"] * 6))
    assert "'benign' has 60 samples and 'malignant' 6" in found["imbalance"]
    assert "few-patients" not in found
    one = codes(notes(["benign"] * 20 + ["malignant"] * 6, [*range(20), *[99] * 6]))
    assert "malignant (1)" in one["few-patients"]
    assert "imbalance" not in one
    assert not {"imbalance", "few-patients", "order", "label-conflict"} & set(
        codes(notes(["a", "b"] * 10))
    )


def test_grades_in_words_are_told_in_their_order() -> None:
    found = codes(notes(["poor", "fair", "good"] * 6), kind="ordinal")
    assert "fair, good, poor" in found["order"]
    assert "order" not in codes(notes(["0", "10", "2"] * 6), kind="ordinal")


def test_one_picture_with_two_labels_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    table = pd.DataFrame(
        {
            "image": ["0.png", "1.png", "2.png", "3.png", "copy.png"],
            "label": ["a", "a", "b", "b", "b"],
            "patient_id": [0, 1, 2, 3, 1],
        }
    )
    for label, told in (("b", True), ("a", False), (None, False)):
        table.loc[4, "label"] = label
        cohort = Cohort.open(table, root=tmp_path, inputs=["image"], label="label")
        found = {finding.code: finding for finding in check(cohort).findings}
        assert ("label-conflict" in found) == told
        if told:
            assert found["label-conflict"].rows == (1, 4)


def test_files_that_lie_a_folder_further_down_are_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "other").mkdir()
    for row in range(6):
        Image.new("RGB", (8, 8), (row * 40, 0, 0)).save(tmp_path / "images" / f"{row}.png")
    table = pd.DataFrame({"image": [f"{row}.png" for row in range(6)], "label": list("ababab")})
    table.to_csv(tmp_path / "cohort.csv", index=False)
    found = check(Cohort.open(tmp_path / "cohort.csv")).findings
    assert found[0].code == "elsewhere" and "lie in 'images/'" in found[0].message
    table["image"] = "images/" + table["image"]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    assert "elsewhere" not in {f.code for f in check(Cohort.open(tmp_path / "cohort.csv")).findings}
