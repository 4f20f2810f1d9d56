"""What a pretrain run writes down: losses of held-out samples with intervals, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image as Pillow

from galenic.core.inputs import InputSpec
from galenic.core.run import Run
from galenic.evaluation import weighted
from galenic.evaluation.bootstrap import Array, Estimate, estimate, estimates
from galenic.objectives import pretraining
from galenic.pipeline.pictures import png

if TYPE_CHECKING:
    from galenic.tasks.pretrain import Job

LEVEL = 0.95
PICTURES = "pictures.png"
# White pixels between two pictures.
GAP = 4


def write_results(job: Job, outputs: dict[str, dict[str, Array]]) -> None:
    """Write `metrics.json` and `losses.parquet`.

    Args:
        job: Whose run.
        outputs: Of `val` and `test`: `losses`, one a sample, and the parts that they are made of;
            or what the method makes one loss of.
    """
    rows = {part: getattr(job.splits, part) for part in outputs}
    losses = {
        part: {"loss" if name == "losses" else name: values for name, values in found.items()}
        for part, found in outputs.items()
    }
    figures = {}
    for part, found in outputs.items():
        groups, whole = job.cohort.patient_ids[rows[part]], pretraining.together(job.method, found)
        if whole is None:
            figures[part] = {
                name: mean_of(values, groups, job.config) for name, values in losses[part].items()
            }
        else:
            # Other patients, drawn of these, would be another batch: there is no interval.
            losses[part] = {}
            figures[part] = {"loss": estimate(whole, np.empty(0), LEVEL, len(np.unique(groups)))}
    job.run.write_json(
        "metrics.json",
        {
            "main": "loss",
            "kind": "pretraining",
            "classes": [],
            "test": {name: figure.to_dict() for name, figure in figures["test"].items()},
            "validation": {name: figure.to_dict() for name, figure in figures["val"].items()},
        },
    )
    columns = {
        "row": np.concatenate(list(rows.values())),
        "split": np.repeat(list(rows), [len(found) for found in rows.values()]),
        **{
            name: np.concatenate([found[name] for found in losses.values()])
            for name in losses["test"]
        },
    }
    job.run.write_table("losses.parquet", pd.DataFrame(columns))
    job.run.log({"event": "scored", "loss": figures["test"]["loss"].value})


def mean_of(values: Array, groups: Array, config: Any) -> Estimate:
    """Mean over samples with the bootstrap over patients."""
    metric = partial(weighted.mean_of, values.astype(np.float64))
    [found] = estimates(metric, groups, resamples=config.resamples, level=LEVEL, seed=config.seed)
    return found


def draw_pictures(run: Run, shown: Array, specs: Sequence[InputSpec]) -> None:
    """Write a table of pictures, one row a sample; of a volume its middle slice, of a tracing none.

    Args:
        run: Where to write.
        shown: [B, k, C, (D,) H, W] in the network's units; of tracings [B, k, C, T].
        specs: How each input was normalised [B].
    """
    if shown.ndim < 5:
        return
    if shown.ndim == 6:
        shown = shown[:, :, :, shown.shape[3] // 2]
    shown = _intensities(shown, specs)
    padded = np.pad(shown, [(0, 0)] * 3 + [(0, GAP), (0, GAP)], constant_values=1.0)
    rows, columns, channels, height, width = padded.shape
    sheet = padded.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    pixels = (sheet.clip(0, 1) * 255).round().astype(np.uint8)
    picture = Pillow.fromarray(pixels if channels == 3 else pixels[..., 0])
    run.write_bytes(PICTURES, png(picture))


def _intensities(shown: Array, specs: Sequence[InputSpec]) -> Array:
    """Network units back to 0..1."""
    if specs[0].mean is not None and specs[0].std is not None:
        mean, std = (
            np.asarray([getattr(spec, name) for spec in specs], np.float32)[:, None, :, None, None]
            for name in ("mean", "std")
        )
        return shown * std + mean
    low, high = shown[:, :1].min(), shown[:, :1].max()
    return (shown - low) / max(high - low, 1e-6)
