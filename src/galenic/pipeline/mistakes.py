"""The worst mistakes of a run and its best answers, with what the network saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Pillow

from galenic.core.errors import GalenicError
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.labels import LabelSpec
from galenic.data.values import Image, Volume
from galenic.pipeline.pictures import picture_of, png

Array = np.ndarray[Any, np.dtype[Any]]
COUNT = 12
BEST = 4
SIDE = 256
# Of a heat map over its picture.
COLD, HOT, STRENGTH = (13, 8, 135), (240, 249, 33), 0.45
TEXT = 400


# From rows to maps [h, w] from 0 to 1 of where the network looked; not all rows need have one.
Look = Callable[[Sequence[int]], dict[int, Array]]


def extremes(
    run: Run, cohort: Cohort, label: LabelSpec, predictions: pd.DataFrame, look: Look
) -> None:
    """Write `mistakes.json` and `best.json`: the sure and wrong, and the sure and right, of test.

    Of each picture a small copy is written too, and one under its heat map.

    Args:
        run: Where to write.
        cohort: The samples.
        label: What was predicted.
        predictions: One row a sample, as :mod:`galenic.evaluation.protocol` makes them.
        look: Where the network looked.
    """
    if label.kind == "multilabel":
        return
    test = predictions[predictions["split"] == "test"]
    scores = test.filter(regex=r"^score_\d+$").to_numpy()
    target = test["label"].to_numpy()
    wrong, right, predicted, confidence = _judged(label.kind, target, scores)
    # A measurement's error stands for its confidence: the best have the least.
    best = -confidence if label.kind == "continuous" else confidence
    for name, chosen, worth, count in (
        ("mistakes", wrong, confidence, COUNT), ("best", right, best, BEST),
    ):  # fmt: skip
        places = np.flatnonzero(chosen)[np.argsort(-worth[chosen], kind="stable")[:count]]
        rows = [int(row) for row in test["row"].iloc[places]]
        maps = look(rows)
        found = [
            {
                "row": row,
                "label": _name(label, target[place]),
                "predicted": _name(label, predicted[place]),
                "confidence": float(confidence[place]),
                "input": _show(run, cohort, row, name, maps.get(row)),
            }
            for row, place in zip(rows, places, strict=True)
        ]
        run.write_json(f"{name}.json", found)


def _judged(kind: str, target: Array, scores: Array) -> tuple[Array, Array, Array, Array]:
    """Which samples are wrong and which right, what was said, and how surely."""
    if kind == "continuous":
        error = np.abs(scores[:, 0] - target)
        return error > 0, ~np.isnan(error), scores[:, 0], error
    if kind == "binary":
        predicted = (scores[:, 0] >= 0.5).astype(int)
        confidence = np.where(predicted == 1, scores[:, 0], 1 - scores[:, 0])
    else:
        predicted = scores.argmax(axis=1)
        confidence = scores.max(axis=1)
    return (predicted != target) & (target >= 0), predicted == target, predicted, confidence


def _name(label: LabelSpec, value: Any) -> str:
    return f"{float(value):.4g}" if label.kind == "continuous" else label.classes[int(value)]


def _show(run: Run, cohort: Cohort, row: int, folder: str, heat: Array | None) -> dict[str, str]:
    column = next(iter(cohort.inputs))
    try:
        value = cohort.read(row)[column]
    except GalenicError:
        return {"kind": "none"}
    if isinstance(value, str):
        return {"kind": "text", "text": value[:TEXT]}
    if not isinstance(value, Image | Volume):
        return {"kind": "none"}
    small = picture_of(value)
    small.thumbnail((SIDE, SIDE))
    name = f"{folder}/{row}.png"
    run.write_bytes(name, png(small))
    if heat is None:
        return {"kind": "image", "png": name}
    looked = f"{folder}/{row}-heat.png"
    run.write_bytes(looked, png(under(small, heat)))
    return {"kind": "image", "png": name, "heat": looked}


def under(picture: Pillow.Image, heat: Array) -> Pillow.Image:
    """A picture under a map [h, w] from 0 to 1, stretched over it: cold is blue, hot is yellow."""
    spread = Pillow.fromarray((heat * 255).astype(np.uint8)).resize(
        picture.size, Pillow.Resampling.BICUBIC
    )
    share = np.asarray(spread, np.float32)[..., None] / 255
    colours = (1 - share) * np.array(COLD) + share * np.array(HOT)
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32)
    mixed = (1 - STRENGTH) * grey + STRENGTH * colours
    return Pillow.fromarray(mixed.astype(np.uint8))
