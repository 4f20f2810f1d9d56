"""Pictures, volumes and records whose files say more than their samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from galenic.core.errors import DataError
from galenic.data.cohort import Cohort
from galenic.data.readers import header, parts_of, read
from galenic.data.values import Image, Volume

# Pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[-1000, 0], [40, 3000]], np.float32),
        ([[0, 1], [40, 65535]], np.uint16),
        ([[0, 1], [40, 70000]], np.float32),
    ],
)
def test_whole_numbers_of_a_tiff_keep_their_sign_and_size(
    values: list[list[int]], kind: type, tmp_path: Path
) -> None:
    Pillow.fromarray(np.array(values, np.int32)).save(tmp_path / "a.tif")
    value = read(tmp_path / "a.tif")
    assert isinstance(value, Image)
    assert value.pixels.dtype == kind
    np.testing.assert_array_equal(value.pixels[0], values)


@pytest.mark.parametrize(("flag", "pages"), [(None, 3), (2, 3), (1, None)])
def test_pages_of_a_tiff_are_counted(flag: int | None, pages: int | None, tmp_path: Path) -> None:
    """Smaller versions of the first page (flag 1) are no pictures of their own."""
    first, *more = (Pillow.fromarray(np.full((8, 8), 10 * i, np.uint8)) for i in range(3))
    for page in more if flag is not None else ():
        page.encoderinfo = {"tiffinfo": ImageFileDirectory_v2()}
        page.encoderinfo["tiffinfo"][254] = flag
    path = tmp_path / "a.tif"
    first.save(path, save_all=True, append_images=more)
    for ask in (read, header):
        if pages is None:
            ask(path)
            continue
        with pytest.raises(DataError, match=f"The TIFF has {pages} pages"):
            ask(path)


# Volumes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("unknown", 1), ("micron", 1e-3)])
@pytest.mark.parametrize("flip", [1, -1])
def test_the_affine_and_its_unit_tell_the_spacing(
    unit: str, scale: float, flip: int, tmp_path: Path
) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([flip * 2.0, 3, 4, 1])
    made = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), affine)
    # Some tools leave the sizes beside the affine as they were.
    made.header["pixdim"][1:4] = 1
    made.header.set_xyzt_units(unit)
    nibabel.save(made, tmp_path / "a.nii.gz")
    value, found = read(tmp_path / "a.nii.gz"), header(tmp_path / "a.nii.gz")
    assert isinstance(value, Volume) and value.affine is not None and found is not None
    assert value.spacing_mm == pytest.approx((4 * scale, 3 * scale, 2 * scale))
    assert found.spacing_mm == pytest.approx((2 * scale, 3 * scale, 4 * scale))
    np.testing.assert_allclose(np.diag(value.affine)[:3], np.multiply([2, 3, 4], scale))
    np.testing.assert_allclose(found.affine, value.affine)


# Records ------------------------------------------------------------------------------------


def test_segments_of_a_record_tell_patients_apart(tmp_path: Path) -> None:
    """Two records whose first headers are one and the same: the second segment is a gap."""
    wfdb = pytest.importorskip("wfdb")
    signal = np.random.default_rng(0).normal(0, 0.5, (1000, 2))
    for gain, name in enumerate(("one", "two"), 1):
        (tmp_path / name).mkdir()
        for part in range(2):
            wfdb.wrsamp(
                f"seg_{part}", fs=500, units=["mV"] * 2, sig_name=["I", "II"], fmt=["16", "16"],
                p_signal=signal[500 * part : 500 * part + 500] * gain,
                write_dir=str(tmp_path / name),
            )  # fmt: skip
        (tmp_path / name / "ecg.hea").write_text(
            "# a comment\necg/3 2 500 1100\nseg_0 500\n~ 100\nseg_1 500\n"
        )
    files = [path.name for path in parts_of(tmp_path / "one" / "ecg")]
    assert files == ["ecg.hea", "seg_0.hea", "seg_0.dat", "seg_1.hea", "seg_1.dat"]
    cohort = Cohort.open(pd.DataFrame({"ecg": ["one/ecg", "two/ecg"]}), root=tmp_path)
    assert cohort.content(0) != cohort.content(1)
    (tmp_path / "two" / "seg_1.hea").unlink()
    with pytest.raises(DataError, match=r"seg_1\.hea' is missing"):
        cohort.content(1)
