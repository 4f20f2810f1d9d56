"""Boxes in other people's files, as a manifest: COCO JSON and YOLO text files."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from galenic.core.errors import DataError
from galenic.data.readers import header, modality_of

Rows = dict[str, list[list[Any]]]


def read_coco(path: Path) -> pd.DataFrame:
    """A COCO file of instances: columns `image`, `boxes` and what else its images say.

    Images are looked for beside the file, and in its folder `images`.

    Raises:
        DataError: If it is no such file, or a box names an image or a category that it lacks.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        images, annotations = found["images"], found["annotations"]
        names = {entry["id"]: str(entry["name"]) for entry in found["categories"]}
        files = {entry["id"]: str(entry["file_name"]) for entry in images}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f"This is no COCO file: {type(error).__name__}.",
            where=path.name,
            expected="an object with images, annotations and categories",
        ) from None
    boxes: Rows = defaultdict(list)
    for place, entry in enumerate(annotations):
        try:
            x, y, width, height = (float(number) for number in entry["bbox"])
            name, image = names[entry["category_id"]], entry["image_id"]
        except (KeyError, ValueError, TypeError):
            raise DataError(
                "The annotation has no box of four numbers, or no known category.",
                where=f"{path.name}, annotation {place}",
                expected="bbox [x, y, width, height], and a category_id of the file",
            ) from None
        if image not in files:
            raise DataError(
                "The annotation is of an image that is not there.",
                where=f"{path.name}, annotation {place}",
                expected="an image_id of the file",
            )
        boxes[image].append([x, y, x + width, y + height, name])
    folder = "" if (path.parent / next(iter(files.values()), "")).is_file() else "images"
    known = ("id", "file_name", "width", "height")
    rows = [
        {
            "image": str(Path(folder) / files[entry["id"]]),
            "boxes": json.dumps(boxes.get(entry["id"], [])),
            **{key: value for key, value in entry.items() if key not in known},
        }
        for entry in images
    ]
    return pd.DataFrame(rows, columns=None if rows else ["image", "boxes"])


def is_yolo(folder: Path) -> bool:
    """Whether a folder has pictures in `images` and text files in `labels`."""
    return (folder / "images").is_dir() and any((folder / "labels").glob("**/*.txt"))


def read_yolo(folder: Path) -> pd.DataFrame:
    """A folder of YOLO: columns `image` and `boxes`, and `split` where there are such folders.

    A line is `class x y width height`, centre and sides as shares of the image. Names of the
    classes stand in `classes.txt` or in `names` of `data.yaml`; else they are numbers.

    Raises:
        DataError: If a line is no such line, or its class has no name.
    """
    names = _yolo_names(folder)
    rows = []
    for path in sorted((folder / "images").rglob("*")):
        if modality_of(path.name) != "image":
            continue
        inside = path.relative_to(folder / "images")
        text = folder / "labels" / inside.with_suffix(".txt")
        lines = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
        found = header(path) if lines else None
        size = (found.shape[-1], found.shape[-2]) if found is not None else (0, 0)
        boxes = [
            _yolo_box(line, size, names, f"{text.relative_to(folder)}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        row = {"image": str(path.relative_to(folder)), "boxes": json.dumps(boxes)}
        rows.append(row | ({"split": inside.parts[0]} if len(inside.parts) > 1 else {}))
    return pd.DataFrame(rows)


def _yolo_names(folder: Path) -> list[str] | None:
    import yaml

    lines, about = folder / "classes.txt", folder / "data.yaml"
    if lines.is_file():
        return [line.strip() for line in lines.read_text(encoding="utf-8").rstrip().splitlines()]
    if not about.is_file():
        return None
    try:
        names = yaml.safe_load(about.read_text(encoding="utf-8"))["names"]
    except (yaml.YAMLError, KeyError, TypeError):
        raise DataError("There are no `names`.", where=about.name) from None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    return [str(name) for name in names]


def _yolo_box(line: str, size: tuple[int, int], names: list[str] | None, where: str) -> list[Any]:
    try:
        number, *shares = line.split()
        x, y, width, height = (float(share) for share in shares)
        code = int(number)
    except ValueError:
        raise DataError(
            "The line is no box.", where=where, expected="class x y width height"
        ) from None
    if names is not None and not 0 <= code < len(names):
        raise DataError(
            f"Class {code} has no name.", where=where, expected=f"0 to {len(names) - 1}"
        )
    corners = [(x - width / 2), (y - height / 2), (x + width / 2), (y + height / 2)]
    scaled = [share * side for share, side in zip(corners, (*size, *size), strict=True)]
    return [*scaled, names[code] if names is not None else str(code)]
