"""The worst mistakes of a run, with what the network saw."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Pillow

from galenic.core.errors import GalenicError
from galenic.core.files import atomic_write
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.labels import LabelSpec
from galenic.data.values import Image, Volume

Array = np.ndarray[Any, np.dtype[Any]]
COUNT = 12
SIDE = 256
TEXT = 400


def worst(run: Run, cohort: Cohort, label: LabelSpec, predictions: pd.DataFrame) -> None:
    """Write `mistakes.json` and a small picture of each: the confident and wrong of the test part.

    Args:
        run: Where to write.
        cohort: The samples.
        label: What was predicted.
        predictions: One row a sample, as :mod:`galenic.evaluation.protocol` makes them.
    """
    if label.kind == "multilabel":
        return
    test = predictions[predictions["split"] == "test"]
    scores = test.filter(regex=r"^score_\d+$").to_numpy()
    target = test["label"].to_numpy()
    wrong, predicted, confidence = _mistakes(label.kind, target, scores)
    order = np.argsort(-confidence[wrong], kind="stable")[:COUNT]
    found = []
    for place in np.flatnonzero(wrong)[order]:
        row = int(test["row"].iloc[place])
        found.append(
            {
                "row": row,
                "label": _name(label, target[place]),
                "predicted": _name(label, predicted[place]),
                "confidence": float(confidence[place]),
                "input": _show(run, cohort, row),
            }
        )
    run.write_json("mistakes.json", found)


def _mistakes(kind: str, target: Array, scores: Array) -> tuple[Array, Array, Array]:
    if kind == "continuous":
        error = np.abs(scores[:, 0] - target)
        return error > 0, scores[:, 0], error
    if kind == "binary":
        predicted = (scores[:, 0] >= 0.5).astype(int)
        confidence = np.where(predicted == 1, scores[:, 0], 1 - scores[:, 0])
    else:
        predicted = scores.argmax(axis=1)
        confidence = scores.max(axis=1)
    return (predicted != target) & (target >= 0), predicted, confidence


def _name(label: LabelSpec, value: Any) -> str:
    return f"{float(value):.4g}" if label.kind == "continuous" else label.classes[int(value)]


def _show(run: Run, cohort: Cohort, row: int) -> dict[str, str]:
    column = next(iter(cohort.inputs))
    try:
        value = cohort.read(row)[column]
    except GalenicError:
        return {"kind": "none"}
    if isinstance(value, str):
        return {"kind": "text", "text": value[:TEXT]}
    if isinstance(value, Volume):
        picture = value.voxels[0, value.voxels.shape[1] // 2]
    elif isinstance(value, Image):
        picture = value.pixels.transpose(1, 2, 0) if len(value.pixels) == 3 else value.pixels[0]
    else:
        return {"kind": "none"}
    name = f"mistakes/{row}.png"
    atomic_write(run.path / name, _png(picture))
    return {"kind": "image", "png": name}


def _png(picture: Array) -> bytes:
    low, high = np.percentile(picture, [0.5, 99.5])
    scaled = np.clip((picture - low) / max(high - low, 1e-6), 0, 1) * 255
    small = Pillow.fromarray(scaled.astype(np.uint8))
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
