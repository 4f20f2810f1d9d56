"""Every reader: mutated files give a value or a DataError, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from galenic.core.errors import DataError
from galenic.data.cohort import Cohort
from galenic.data.readers import parts_of, read, reader_for
from galenic.data.values import Image, Signal, Volume

MUTATIONS = 60


def samples(folder: Path) -> dict[str, Path]:
    """One real or well-formed file a reader."""
    import nibabel
    import pydicom
    import soundfile

    rng = np.random.default_rng(0)
    made = {
        "png": folder / "a.png", "jpeg": folder / "a.jpg", "tiff": folder / "a.tif",
        "nifti": folder / "a.nii.gz", "wav": folder / "a.wav", "text": folder / "a.txt",
        "dicom": folder / "a.dcm",
    }  # fmt: skip
    pixels = rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)
    for name in ("png", "jpeg"):
        Pillow.fromarray(pixels).save(made[name])
    Pillow.fromarray(rng.integers(0, 65535, (24, 20), dtype=np.uint16)).save(made["tiff"])
    volume = rng.normal(size=(5, 6, 7)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 2, 3, 1.0])), made["nifti"])
    soundfile.write(made["wav"], rng.normal(size=800) * 0.1, 8000)
    made["text"].write_text("a cough of three days")
    made["dicom"].write_bytes(Path(pydicom.examples.get_path("ct")).read_bytes())
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("nibabel")
    return samples(tmp_path_factory.mktemp("readers"))


KINDS = ["png", "jpeg", "tiff", "nifti", "wav", "text", "dicom"]


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_give_a_value_or_a_data_error(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    good = files[kind].read_bytes()
    rng = np.random.default_rng(len(kind))
    target = tmp_path / files[kind].name
    for turn in range(MUTATIONS):
        data = bytearray(good)
        if turn % 3 == 0:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            for place in rng.integers(0, min(len(data), 400 if turn % 2 else len(data)), 4):
                data[place] = int(rng.integers(0, 256))
        target.write_bytes(bytes(data))
        try:
            value = read(target)
        except DataError as error:
            assert error.found
        else:
            assert isinstance(value, Image | Volume | Signal | str)


def test_values_equal_the_format_library(files: dict[str, Path]) -> None:
    import nibabel
    import pydicom

    volume = read(files["nifti"])
    assert isinstance(volume, Volume)
    assert volume.spacing_mm == (3, 2, 1)
    reference = nibabel.load(files["nifti"]).get_fdata()
    np.testing.assert_allclose(volume.voxels[0], reference.transpose(2, 1, 0), rtol=1e-6)
    image = read(files["dicom"])
    assert isinstance(image, Image)
    data = pydicom.dcmread(files["dicom"])
    hounsfield = data.pixel_array * data.RescaleSlope + data.RescaleIntercept
    np.testing.assert_allclose(image.pixels[0], hounsfield)
    assert image.spacing_mm == tuple(map(float, data.PixelSpacing))


def test_nan_in_a_volume_is_counted(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    voxels = np.ones((3, 3, 3), np.float32)
    voxels[0, 0, :2] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "bad.nii.gz")
    with pytest.raises(DataError, match="2 of 27"):
        read(tmp_path / "bad.nii.gz")


def test_a_real_ecg_has_twelve_leads(real_data: Path) -> None:
    pytest.importorskip("wfdb")
    value = read(next((real_data / "ptbxl_500/records100").rglob("*.hea")))
    assert isinstance(value, Signal)
    assert value.samples.shape == (12, 1000)
    assert value.rate_hz == 100
    assert value.channels[:2] == ("I", "II")


def test_names_choose_the_reader() -> None:
    assert reader_for("x.NII.GZ").MODALITY == "volume"
    assert reader_for("a sentence about a cough") is None


def test_a_record_is_found_by_its_bare_name(real_data: Path) -> None:
    pytest.importorskip("wfdb")
    cohort = Cohort.open(
        real_data / "ptbxl_500/records.csv", label="device", inputs=["filename_lr"]
    )
    assert cohort.inputs == {"filename_lr": "ecg"}
    named = (real_data / "ptbxl_500" / cohort.table["filename_lr"][0]).with_suffix(".hea")
    np.testing.assert_array_equal(cohort.read(0)["filename_lr"].samples, read(named).samples)
    assert len(parts_of(named.with_suffix(""))) == 2
