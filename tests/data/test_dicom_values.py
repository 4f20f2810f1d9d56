"""What the pixels of a DICOM file stand for: units, windows, colours, and frames with their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galenic.data.readers import header, read
from galenic.data.values import Image, Volume

pydicom = pytest.importorskip("pydicom")
SIDE = 4


def write(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """A grey file of one or several frames, whose other tags are as given."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.Rows, data.Columns = data_sides = pixels.shape[-2:]
    if pixels.size > np.prod(data_sides):
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.add_new("PixelData", "OW", pixels.tobytes())
    for tag, value in tags.items():
        setattr(data, tag, value)
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def group(name: str, **tags: Any) -> Any:
    """The functional group `name` with one item."""
    item, holder = pydicom.Dataset(), pydicom.Dataset()
    for tag, value in tags.items():
        setattr(item, tag, value)
    setattr(holder, name, [item])
    return holder


def merged(*holders: Any) -> Any:
    whole = pydicom.Dataset()
    for holder in holders:
        whole.update(holder)
    return whole


# A series -----------------------------------------------------------------------------------

WINDOWED = [{"WindowCenter": 500 + 150 * z, "WindowWidth": 1000 + 300 * z} for z in range(4)]
SLOPES = [{"RescaleSlope": 1.0 + z, "RescaleIntercept": 0} | WINDOWED[z] for z in range(4)]


@pytest.mark.parametrize(
    ("modality", "own", "stored", "grey", "expected"),
    [
        ("MR", WINDOWED, [500] * 4, "MONOCHROME2", 500),
        ("PT", SLOPES, [12000, 6000, 4000, 3000], "MONOCHROME2", 12000),
        # The whole stack goes from 0 to 1600.
        ("MR", [{}] * 4, [500] * 4, "MONOCHROME1", 1100),
    ],
)
def test_one_tissue_has_one_value_in_all_slices(
    modality: str,
    own: list[dict[str, Any]],
    stored: list[int],
    grey: str,
    expected: float,
    tmp_path: Path,
) -> None:
    for z in range(4):
        pixels = np.full((SIDE, SIDE), stored[z], np.uint16)
        # Extremes that differ from slice to slice.
        pixels[0, :2] = 0, 1000 + 200 * z
        write(
            tmp_path / "series" / f"{z}.dcm", pixels, Modality=modality, SeriesInstanceUID="1.2",
            PhotometricInterpretation=grey, PixelSpacing=[1, 1], ImagePositionPatient=[0, 0, 2 * z],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], **own[z],
        )  # fmt: skip
    value = read(tmp_path / "series")
    assert isinstance(value, Volume)
    # Turned to RAS: the first row and column are the last.
    assert np.unique(value.voxels[0, :, :-1]).tolist() == [expected]
    found = header(tmp_path / "series")
    assert found is not None and value.affine is not None
    np.testing.assert_allclose(found.affine, value.affine)


# Functional groups --------------------------------------------------------------------------


def rescale(slope: float, intercept: float) -> Any:
    name = "PixelValueTransformationSequence"
    return group(name, RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")


def test_groups_that_all_frames_share_give_unit_and_spacing(tmp_path: Path) -> None:
    measures = group("PixelMeasuresSequence", PixelSpacing=[0.5, 0.7], SliceThickness=3)
    shared = merged(rescale(1, -1024), measures)
    pixels = np.full((3, SIDE, SIDE), 1024, np.uint16)
    path = write(
        tmp_path / "ct.dcm", pixels, Modality="CT", SharedFunctionalGroupsSequence=[shared]
    )
    value = read(path)
    assert isinstance(value, Volume)
    assert np.unique(value.voxels).tolist() == [0]
    assert value.spacing_mm == (3, 0.5, 0.7)
    assert header(path).spacing_mm == (0.5, 0.7)


def test_groups_of_each_frame_give_its_unit_and_place(tmp_path: Path) -> None:
    measures = group("PixelMeasuresSequence", PixelSpacing=[1, 1], SliceThickness=9)
    plane = group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    frames = [
        merged(
            rescale(slope, 5), group("PlanePositionSequence", ImagePositionPatient=[0, 2 * z, 0])
        )
        for z, slope in enumerate((1, 2, 4))
    ]
    path = write(
        tmp_path / "pet.dcm", np.full((3, SIDE, SIDE), 100, np.uint16), Modality="PT",
        SharedFunctionalGroupsSequence=[merged(measures, plane)],
        PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip
    value = read(path)
    assert isinstance(value, Volume)
    assert value.voxels[0, :, 0, 0].tolist() == [105, 205, 405]
    assert value.spacing_mm == (2, 1, 1)


def test_the_top_of_a_file_comes_before_its_groups(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.dcm", np.full((2, SIDE, SIDE), 10, np.uint16), RescaleSlope=3,
        RescaleIntercept=1, PixelSpacing=[2, 2], SpacingBetweenSlices=4,
        SharedFunctionalGroupsSequence=[
            merged(rescale(1, 0), group("PixelMeasuresSequence", PixelSpacing=[1, 1]))
        ],
    )  # fmt: skip
    value = read(path)
    assert isinstance(value, Volume)
    assert value.voxels[0, 0, 0, 0] == 31
    assert value.spacing_mm == (4, 2, 2)


# Colours ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SC_ybr_full_422_uncompressed", "SC_rgb_dcmtk_+eb+cy+np"])
def test_luminance_and_chrominance_are_red_green_and_blue(name: str) -> None:
    """Plain and as JPEG, of one picture whose upper bars are known (it comes with pydicom)."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    value = read(folder / f"{name}.dcm")
    assert isinstance(value, Image)
    bars = value.pixels[:, [5, 15, 25], 50].T.astype(int)
    np.testing.assert_allclose(bars, [[255, 0, 0], [255, 128, 128], [0, 255, 0]], atol=8)


@pytest.mark.parametrize(("depth", "scale"), [(16, 257), (8, 1)])
def test_a_palette_gives_colours(depth: int, scale: int, tmp_path: Path) -> None:
    colours = np.array([[200, 200, 200], [10, 10, 10], [255, 0, 0], [0, 0, 255]])
    tables = {}
    for colour, entries in zip(("Red", "Green", "Blue"), colours.T, strict=True):
        name = f"{colour}PaletteColorLookupTable"
        tables[f"{name}Descriptor"] = [4, 0, depth]
        # Entries lie in 16 bits, whatever their depth.
        tables[f"{name}Data"] = (entries * scale).astype("<u2").tobytes()
    path = write(
        tmp_path / "us.dcm", np.array([[0, 1], [2, 3]], np.uint8), Modality="US",
        PhotometricInterpretation="PALETTE COLOR", **tables,
    )  # fmt: skip
    value = read(path)
    assert isinstance(value, Image)
    np.testing.assert_array_equal(value.pixels, colours.reshape(2, 2, 3).transpose(2, 0, 1))
