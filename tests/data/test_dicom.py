"""DICOM beyond pictures: waveforms, and folders of slices."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from galenic.core.errors import DataError
from galenic.data import seen
from galenic.data.check import check
from galenic.data.cohort import Cohort
from galenic.data.readers import header, modality_in, parts_of, read
from galenic.data.values import Signal, Volume

pydicom = pytest.importorskip("pydicom")
SHAPE = (5, 6, 7)
# Slice, row and column distance in mm.
SPACING = (2.5, 0.5, 0.8)


def example(name: str) -> Path:
    return Path(pydicom.examples.get_path(name))


def write_series(folder: Path, directions: list[float], places: list[int] | None = None) -> Any:
    """Slices whose voxels are numbered, named against their order; gives the voxels."""
    folder.mkdir()
    voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    normal = np.cross(directions[:3], directions[3:])
    for place in range(SHAPE[0]) if places is None else places:
        data = pydicom.dcmread(example("ct"))
        del data.DataSetTrailingPadding
        data.Rows, data.Columns = SHAPE[1:]
        data.PixelData = voxels[place].tobytes()
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelSpacing = list(SPACING[1:])
        data.ImageOrientationPatient = directions
        data.ImagePositionPatient = [round(float(v), 4) for v in normal * place * SPACING[0]]
        data.save_as(folder / f"{SHAPE[0] - place}.dcm")
    return voxels


AXIAL = [1.0, 0, 0, 0, 1, 0]
CORONAL = [1.0, 0, 0, 0, 0, -1]
SAGITTAL = [0.0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, SAGITTAL])
def test_a_series_lies_where_monai_puts_it(directions: list[float], tmp_path: Path) -> None:
    """The same voxel at the same place in the world, whatever the plane of the slices."""
    data = pytest.importorskip("monai.data")
    voxels = write_series(tmp_path / "series", directions)
    ours = read(tmp_path / "series")
    assert isinstance(ours, Volume)
    assert ours.affine is not None
    reader = data.PydicomReader(affine_lps_to_ras=True)
    theirs, meta = reader.get_data(reader.read(str(tmp_path / "series")))
    for marked in (0, 50, voxels.size - 1):
        d, h, w = np.argwhere(ours.voxels[0] == marked)[0]
        i, j, k = np.argwhere(np.asarray(theirs) == marked)[0]
        np.testing.assert_allclose(
            ours.affine @ [w, h, d, 1], np.asarray(meta["affine"]) @ [i, j, k, 1], atol=1e-4
        )
    assert sorted(ours.spacing_mm or ()) == pytest.approx(sorted(SPACING))
    assert np.allclose(ours.affine[:3, :3], np.diag(np.diag(ours.affine)[:3]))
    assert (np.diag(ours.affine) > 0).all()


def test_a_missing_slice_is_found(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", AXIAL, [0, 1, 3, 4])
    with pytest.raises(DataError, match="slices are missing"):
        read(tmp_path / "gap")


def test_two_series_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "two", AXIAL)
    shutil.copy(example("mr"), tmp_path / "two" / "other.dcm")
    with pytest.raises(DataError, match="2 series"):
        read(tmp_path / "two")


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("PixelSpacing", [0.5, 0.9], "slices of 2 pixel spacings"),
        ("PixelSpacing", None, "slices of 2 pixel spacings"),
        ("ImageOrientationPatient", CORONAL, "slices of 2 directions"),
        ("ImageOrientationPatient", [1.0, 0, 0, 0, 0.9962, 0.0872], "slices of 2 directions"),
        ("ImagePositionPatient", [0.0, 0.0, 11.9], "unevenly spaced at 2 of 4"),
        ("Rows", 4, "slices of 2 sizes"),
        ("PhotometricInterpretation", "MONOCHROME1", "slices of 2 kinds of grey"),
    ],
)
def test_a_slice_that_does_not_belong_is_found(
    tag: str, value: Any, words: str, tmp_path: Path
) -> None:
    """By the reader, and by a check that decodes files or reads headers alone."""
    for name in ("whole", "mixed"):
        write_series(tmp_path / name, AXIAL)
    path = tmp_path / "mixed" / "2.dcm"
    data = pydicom.dcmread(path)
    if value is None:
        delattr(data, tag)
    else:
        setattr(data, tag, value)
    if tag == "Rows":
        data.PixelData = data.PixelData[: 4 * SHAPE[2] * 2]
    data.save_as(path)
    for ask in (read, header):
        with pytest.raises(DataError, match=words):
            ask(tmp_path / "mixed")
    table = pd.DataFrame({"file": ["whole", "mixed"], "label": ["x", "y"]})
    cohort = Cohort.open(table, root=tmp_path)
    for look in (seen.everything, seen.headers):
        [found] = [f for f in check(cohort, look=look).findings if f.code == "unreadable"]
        assert found.level == "error" and found.rows == (1,)


def test_rounding_makes_no_other_spacing(tmp_path: Path) -> None:
    write_series(tmp_path / "series", AXIAL)
    path = tmp_path / "series" / "2.dcm"
    data = pydicom.dcmread(path)
    data.PixelSpacing = [0.50001, 0.79999]
    data.save_as(path)
    value, found = read(tmp_path / "series"), header(tmp_path / "series")
    assert value.voxels.shape == (1, *found.shape)
    assert found.spacing_mm == pytest.approx(value.spacing_mm, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "shape", "spacing", "code"),
    [
        ("series", SHAPE, SPACING, None),
        ("series", SHAPE, (2.5, 0.5, 0.9), "mask-spacing"),
        ("series", SHAPE, (3.0, 0.5, 0.8), "mask-spacing"),
        ("series", (5, 6, 8), SPACING, "mask-size"),
        ("nifti", SHAPE, SPACING, None),
        ("nifti", SHAPE, (2.5, 0.5, 0.9), "mask-spacing"),
        ("nifti", (4, 6, 7), SPACING, "mask-size"),
        ("frames", SHAPE, SPACING, None),
        ("frames", SHAPE, (2.5, 0.5, 0.9), "mask-spacing"),
    ],
)
def test_a_mask_lies_on_its_volume(
    kind: str, shape: tuple[int, ...], spacing: tuple[float, ...], code: str | None, tmp_path: Path
) -> None:
    nibabel = pytest.importorskip("nibabel")

    # Axes of DICOM point left and back.
    way = (1, 1, 1) if kind == "nifti" else (1, -1, -1)

    def save(name: str, sides: tuple[int, ...], by: tuple[float, ...]) -> str:
        voxels = np.zeros(sides[::-1], np.uint8)
        voxels[1:3, 1:3, 1:3] = 1
        affine = np.diag([*np.multiply(by, way)[::-1], 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / name)
        return name

    rows = []
    for number in range(2):
        name = f"{number}.dcm" if kind == "frames" else f"{number}"
        if kind == "nifti":
            name = save(f"{number}.nii.gz", SHAPE, SPACING)
        elif kind == "series":
            write_series(tmp_path / name, AXIAL)
        else:
            write_series(tmp_path / f"{name}-slices", AXIAL)
            data = pydicom.dcmread(tmp_path / f"{name}-slices" / "1.dcm")
            data.NumberOfFrames, data.PixelData = SHAPE[0], data.PixelData * SHAPE[0]
            data.save_as(tmp_path / name)
        good = save(f"mask-{number}.nii.gz", SHAPE, SPACING)
        rows.append({"patient_id": number, "image": name, "mask": good})
    rows[1]["mask"] = save("odd.nii.gz", shape, spacing)
    table = pd.DataFrame(rows)
    cohort = Cohort.open(table, root=tmp_path, inputs=["image"], label="mask", kind="mask")
    found = {f.code: f for f in check(cohort).findings if f.code.startswith("mask-")}
    assert list(found) == ([] if code is None else [code])
    if code is not None:
        assert found[code].rows == (1,) and found[code].level == "error"


def test_a_cut_slice_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "cut", AXIAL)
    path = tmp_path / "cut" / "3.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "cut")


def test_a_waveform_is_an_ecg_in_millivolt() -> None:
    path = example("waveform")
    value = read(path)
    assert isinstance(value, Signal)
    assert value.samples.shape == (12, 10_000)
    assert value.rate_hz == 1000
    assert value.channels == (
        "I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6",
    )  # fmt: skip
    # Einthoven's law holds in one unit for all leads, to the rounding of 16-bit samples.
    lead = dict(zip(value.channels, value.samples, strict=True))
    np.testing.assert_allclose(lead["I"] + lead["III"], lead["II"], atol=0.005)
    assert 0.5 < np.abs(value.samples).max() < 10


@pytest.mark.parametrize(
    ("name", "modality"), [("waveform", "ecg"), ("ct", "image"), ("ybr_color", "volume")]
)
def test_the_header_says_what_a_cohort_holds(name: str, modality: str, tmp_path: Path) -> None:
    shutil.copy(example(name), tmp_path / "a.dcm")
    table = pd.DataFrame({"file": ["a.dcm", "missing.dcm"], "label": ["x", "y"]})
    assert Cohort.open(table, root=tmp_path).inputs == {"file": modality}


def test_class_folders_hold_series(tmp_path: Path) -> None:
    for label in ("ill", "well"):
        (tmp_path / label).mkdir()
        write_series(tmp_path / label / "one", AXIAL)
    cohort = Cohort.open(tmp_path)
    assert cohort.inputs == {"file": "volume"}
    assert len(cohort) == 2
    assert cohort.read(0)["file"].voxels.shape[1:] == SHAPE
    assert len(parts_of(tmp_path / "ill" / "one")) == SHAPE[0]
    assert cohort.content(0) == cohort.content(1)
    (tmp_path / "ill" / "one" / "1.dcm").write_bytes(b"other")
    assert cohort.content(0) != cohort.content(1)


def test_other_folders_are_no_input(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    assert modality_in(tmp_path / "notes") is None
    with pytest.raises(DataError, match="No reader takes"):
        read(tmp_path / "notes")


def test_headers_tell_what_reading_tells(tmp_path: Path) -> None:
    write_series(tmp_path / "series", AXIAL)
    for path in (example("ct"), example("mr"), example("waveform"), tmp_path / "series"):
        value, found = read(path), header(path)
        assert found is not None
        if isinstance(value, Signal):
            assert found.shape == value.samples.shape
            continue
        array = value.voxels if isinstance(value, Volume) else value.pixels
        assert found.shape[-2:] == array.shape[-2:]
        assert found.spacing_mm == pytest.approx(value.spacing_mm)


def test_a_check_of_headers_decodes_nothing(tmp_path: Path, monkeypatch) -> None:
    for name in ("ct", "mr"):
        shutil.copy(example(name), tmp_path / f"{name}.dcm")
    (tmp_path / "torn.dcm").write_bytes(b"no DICOM")
    table = pd.DataFrame(
        {"file": ["ct.dcm", "mr.dcm", "torn.dcm", "gone.dcm"], "label": list("abab")}
    )
    cohort = Cohort.open(table, root=tmp_path)

    def forbidden(*_: Any) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(pydicom.dataset.Dataset, "pixel_array", property(forbidden))
    report = check(cohort, look=seen.headers)
    rows = {row for f in report.findings if f.code == "unreadable" for row in f.rows}
    assert rows == {2, 3}
    assert "sizes" in {f.code for f in report.findings}
