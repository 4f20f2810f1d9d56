"""A folder of BreakHis becomes a cohort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from galenic.core.errors import DataError
from galenic.data.check import check
from galenic.data.cohort import Cohort
from galenic.data.splits import SplitConfig, make_splits

SLIDES = {
    "adenosis": ["SOB_B_A-14-22549AB", "SOB_B_A-14-22549CD", "SOB_B_A-14-29960CD"],
    "fibroadenoma": ["SOB_B_F-14-29960AB", "SOB_B_F-14-9133"],
    "ductal_carcinoma": ["SOB_M_DC-14-13412", "SOB_M_DC-14-2523"],
    "lobular_carcinoma": ["SOB_M_LC-14-13412", "SOB_M_LC-14-15570C"],
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """As it is unpacked, with one picture a magnification."""
    draw = np.random.default_rng(0)
    for subtype, slides in SLIDES.items():
        for slide in slides:
            for magnification in (40, 100):
                side = "benign" if "_B_" in slide else "malignant"
                folder = tmp_path / "breast" / side / "SOB" / subtype / slide / f"{magnification}X"
                folder.mkdir(parents=True)
                pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{slide}-{magnification}-001.png")
    (tmp_path / "README.txt").write_text("No picture.")
    return tmp_path


def test_names_say_class_patient_and_magnification(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = Cohort.open(tree)
    assert cohort.label is not None and cohort.label.classes == ("benign", "malignant")
    assert list(cohort.inputs) == ["file"] and len(cohort) == 18
    # Pieces of a case are of one woman, whatever each is called.
    assert len(set(cohort.patient_ids)) == 6
    own = cohort.table.set_index("slide")
    assert set(own.loc[["14-29960AB", "14-29960CD"], "patient_id"]) == {"14-29960"}
    assert set(cohort.table["magnification"]) == {40, 100}
    assert own.loc["14-15570C", "subtype"].unique() == ["lobular carcinoma"]
    assert own.loc["14-13412", "subtype"].isna().all()
    assert set(own.loc["14-13412", "label"]) == {"malignant"}
    assert "1 slide(s) of two subtypes: 4 pictures" in capsys.readouterr().err
    assert not [finding for finding in check(cohort).findings if finding.level == "error"]
    by_subtype = Cohort.open(tree, label="subtype")
    splits = make_splits(by_subtype, SplitConfig(val=0.3, test=0.3), 0)
    used = np.concatenate([splits.train, splits.val, splits.test])
    assert len(used) == 14 and by_subtype.table.loc[used, "subtype"].notna().all()


def test_a_picture_of_another_name_is_refused(tree: Path) -> None:
    Image.new("RGB", (8, 8)).save(tree / "breast" / "zebra.png")
    with pytest.raises(DataError, match=r"1 picture\(s\) are not named") as caught:
        Cohort.open(tree / "breast")
    assert "zebra.png" in caught.value.message


def test_other_class_folders_stay_what_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "SOB_X_A-14-1-40-001.png")
    assert set(Cohort.open(tmp_path).table["label"]) == {"a", "b"}
