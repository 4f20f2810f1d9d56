"""Boxes of a manifest: reading, cutting, moving along with their image, and other formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from galenic.core.errors import DataError
from galenic.core.inputs import InputSpec
from galenic.data import augment
from galenic.data.augment import AugmentConfig
from galenic.data.box_cohort import boxes_of, sizes_of
from galenic.data.boxes import Boxes, clipped, drawn_along, read_boxes
from galenic.data.check import check
from galenic.data.cohort import Cohort
from galenic.evaluation.detection import overlap
from galenic.pipeline.boxed import BoxRows

WIDTH, HEIGHT = 40, 40


def boxes_in(cell: object) -> Boxes:
    return read_boxes(pd.DataFrame({"boxes": [cell]}), ["boxes"], ["a", "b", "finding"])[0]


@pytest.mark.parametrize(
    ("cell", "corners", "classes"),
    [
        ("[]", [], []),
        (None, [], []),
        ("", [], []),
        ("[[1, 2, 3, 4]]", [[1, 2, 3, 4]], [2]),
        ('[[1, 2, 3, 4, "b"], [0, 0, 1, 1, "a"]]', [[1, 2, 3, 4], [0, 0, 1, 1]], [1, 0]),
        ('[{"x1": 1, "y1": 2, "x2": 3, "y2": 4.5, "class": "a"}]', [[1, 2, 3, 4.5]], [0]),
        ([[1, 2, 3, 4, "a"]], [[1, 2, 3, 4]], [0]),
    ],
)
def test_reads_every_way_of_writing_boxes(cell: object, corners: list, classes: list) -> None:
    found = boxes_in(cell)
    np.testing.assert_array_equal(found.corners, np.array(corners, float).reshape(-1, 4))
    assert found.classes.tolist() == classes


@pytest.mark.parametrize(
    "cell", ["1 2 3 4", "[[1, 2, 3]]", "{}", '[{"x1": 1}]', "[[1, 2, 3, NaN]]", '[["a", 1, 2, 3]]']
)
def test_what_is_no_box_names_its_row(cell: str) -> None:
    table = pd.DataFrame({"boxes": ["[]", cell]})
    with pytest.raises(DataError, match="row 1, column 'boxes'"):
        read_boxes(table, ["boxes"], ["finding"])


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(DataError, match="'heart'"):
        boxes_in('[[1, 2, 3, 4, "heart"]]')


def test_columns_of_one_box_are_classes(real_data: Path) -> None:
    cohort = Cohort.open(
        real_data / "covid_cxr_ccby" / "manifest.csv",
        inputs=["image"],
        label=["right_lung_box_xywh", "left_lung_box_xywh"],
    )
    assert cohort.label is not None and cohort.label.kind == "boxes"
    assert cohort.label.classes == ("left_lung", "right_lung")
    boxes, faults = boxes_of(cohort, sizes_of(cohort))
    assert sum(map(len, boxes)) == 224 and faults.lost == 0
    np.testing.assert_allclose(boxes[0].corners[0], [23.3, 1.3, 254.0, 355.2])


def test_boxes_are_cut_to_the_image() -> None:
    boxes = Boxes(
        np.array([[-5, -5, 10, 10], [35, 35, 50, 50], [50, 0, 60, 9], [5, 5, 5, 9]], float),
        np.arange(4),
    )
    found = clipped(boxes, (40, 40))
    np.testing.assert_array_equal(found.corners, [[0, 0, 10, 10], [35, 35, 40, 40]])
    assert clipped(boxes, (40, 40), least=0.25).classes.tolist() == [0]


def test_sizes_are_those_of_the_picture_as_it_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.new("L", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    cohort = Cohort.open(
        pd.DataFrame({"image": ["a.jpg"], "boxes": ["[[0, 0, 9, 9]]"]}), root=tmp_path
    )
    assert sizes_of(cohort).tolist() == [[30, 40]]
    assert cohort.read(0)["image"].pixels.shape == (1, 40, 30)


# Boxes move with their image -------------------------------------------------------------


def painted(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    picture = np.zeros((1, height, width), np.float32)
    x1, y1, x2, y2 = box.astype(int)
    picture[0, y1:y2, x1:x2] = 1
    return picture


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 3), st.booleans(), st.integers(-4, 4), st.integers(-4, 4),
    st.sampled_from([(40, 40), (40, 28)]),
)  # fmt: skip
def test_a_box_goes_where_its_pixels_go(
    turns: int, flip: bool, down: int, right: int, size: tuple[int, int]
) -> None:
    if size[0] != size[1]:
        turns -= turns % 2
    box = np.array([6, 9, 17, 21], float)
    draw = augment.draw(AugmentConfig(intensity=0), np.random.default_rng(0), (1, *size[::-1]))
    draw |= {"turns": turns, "flip": flip, "shift": [down, right], "gain": 1.0, "offset": 0.0}
    picture = augment.apply(painted(box, size), draw)[0]
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    moved = drawn_along(Boxes(box[None], np.zeros(1, int)), size, draw).corners[0]
    assert moved.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_there_and_back_is_the_same_box(turns: int, flip: bool) -> None:
    boxes = Boxes(np.random.default_rng(0).uniform(0, 20, (5, 4)), np.arange(5))
    boxes.corners[:, 2:] += boxes.corners[:, :2]
    still = {"shift": [0, 0], "flip": False, "turns": 0}
    there = drawn_along(boxes, (40, 40), still | {"turns": turns})
    there = drawn_along(there, (40, 40), still | {"flip": flip})
    back = drawn_along(there, (40, 40), still | {"flip": flip})
    back = drawn_along(back, (40, 40), still | {"turns": (4 - turns) % 4})
    np.testing.assert_allclose(overlap(back.corners, boxes.corners), 1, atol=1e-12)


def test_what_is_hardly_in_sight_is_left_out() -> None:
    boxes = Boxes(np.array([[30, 10, 40, 20], [10, 10, 20, 20]], float), np.arange(2))
    draw = {"shift": [0, 8], "flip": False}
    assert drawn_along(boxes, (40, 40), draw).classes.tolist() == [1]


def test_a_crop_takes_its_boxes_along(tmp_path: Path) -> None:
    box = np.array([10, 12, 30, 26], float)
    Image.fromarray((painted(box, (48, 36))[0] * 255).astype(np.uint8)).save(tmp_path / "a.png")
    table = pd.DataFrame({"image": ["a.png"], "boxes": [json.dumps([box.tolist()])]})
    cohort = Cohort.open(table, root=tmp_path)
    sizes = sizes_of(cohort)
    config = AugmentConfig(crop=(0.6, 0.9), flip=True, turns=True, intensity=0, shift=0.1)
    spec = InputSpec("pixel_values", "image", 1, (96, 96))
    rows = BoxRows(cohort, np.array([0]), boxes_of(cohort, sizes)[0], sizes, spec, augment=config)
    for epoch in range(12):
        rows.set_epoch(epoch)
        example = rows[0]
        inside = example["pixel_values"][0] > 0.5
        seen = np.flatnonzero(inside.any(0))[[0, -1]], np.flatnonzero(inside.any(1))[[0, -1]]
        (x1, x2), (y1, y2) = (edge + np.array([0, 1]) for edge in seen)
        # Edges that the shift repeats may lengthen what is seen, never what the box says.
        if min(x1, y1) > 0 and max(x2, y2) < 96:
            np.testing.assert_allclose(example["boxes"][0], [x1, y1, x2, y2], atol=1.5)


# Check, COCO, YOLO -------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, size in (("a", (40, 30)), ("b", (20, 20)), ("c", (20, 20))):
        picture = np.random.default_rng(len(name)).integers(0, 255, size[::-1]).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def test_check_counts_boxes_that_cannot_be(pictures: Path) -> None:
    table = pd.DataFrame(
        {
            "image": [f"images/{name}.png" for name in "abc"],
            "boxes": ["[[1, 1, 9, 9], [4, 4, 4, 8]]", "[[10, 10, 30, 15]]", ""],
        }
    )
    report = check(Cohort.open(table, root=pictures))
    found = {finding.code: finding.rows for finding in report.findings}
    assert found["box-empty"] == (0,) and found["box-outside"] == (1,)
    assert report.facts["counts"] == {"with boxes": 2, "without": 1}


def test_a_coco_file_is_a_manifest(pictures: Path) -> None:
    coco = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30, "patient_id": "p1"},
            {"id": 9, "file_name": "b.png", "patient_id": "p2"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 4, 10, 5]},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]},
        ],
        "categories": [{"id": 1, "name": "x"}, {"id": 3, "name": "y"}],
    }
    (pictures / "instances.json").write_text(json.dumps(coco))
    cohort = Cohort.open(pictures / "instances.json")
    assert cohort.label is not None and cohort.label.classes == ("x", "y")
    assert len(np.unique(cohort.patient_ids)) == 2
    boxes = boxes_of(cohort, sizes_of(cohort))[0]
    np.testing.assert_array_equal(boxes[0].corners, [[2, 4, 12, 9], [0, 0, 1, 1]])
    assert boxes[0].classes.tolist() == [1, 0] and len(boxes[1]) == 0


@pytest.mark.parametrize(
    "breaks", [{"category_id": 5}, {"image_id": 1}, {"bbox": [1, 2]}, {"bbox": None}]
)
def test_a_broken_annotation_names_its_place(pictures: Path, breaks: dict) -> None:
    good = {"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [good, good | breaks],
        "categories": [{"id": 1, "name": "x"}],
    }
    (pictures / "instances.json").write_text(json.dumps(coco))
    with pytest.raises(DataError, match="annotation 1"):
        Cohort.open(pictures / "instances.json")


def test_any_other_json_is_refused(pictures: Path) -> None:
    for text in ("[]", "{", '{"images": 3}'):
        (pictures / "x.json").write_text(text)
        with pytest.raises(DataError, match="no COCO file"):
            Cohort.open(pictures / "x.json")


def test_a_folder_of_yolo_is_a_manifest(pictures: Path) -> None:
    (pictures / "labels").mkdir()
    (pictures / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.2\n0 0.25 0.5 0.5 1\n")
    (pictures / "classes.txt").write_text("benign nevus\n lung \n\n")
    cohort = Cohort.open(pictures)
    assert cohort.label is not None and cohort.label.classes == ("benign nevus", "lung")
    boxes = boxes_of(cohort, sizes_of(cohort))[0]
    np.testing.assert_allclose(boxes[0].corners, [[15, 12, 25, 18], [0, 0, 20, 30]])
    assert [len(part) for part in boxes] == [2, 0, 0]


@pytest.mark.parametrize("line", ["2 0.5 0.5 0.1 0.1", "0 0.5 0.5", "x 0 0 0 0"])
def test_a_line_of_yolo_that_is_wrong_is_named(pictures: Path, line: str) -> None:
    (pictures / "labels").mkdir()
    (pictures / "labels" / "a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    (pictures / "classes.txt").write_text("bone\nlung\n")
    with pytest.raises(DataError, match=r"a\.txt, line 2"):
        Cohort.open(pictures)
