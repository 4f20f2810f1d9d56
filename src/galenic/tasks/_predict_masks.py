"""Masks of other pictures and volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from galenic.core.config import parse
from galenic.core.meters import count_parameters
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.data.labels import missing
from galenic.data.masks import Masks
from galenic.data.values import Image
from galenic.evaluation.masks import MAIN, METRICS, compare, summarise
from galenic.objectives.segmentation import Segmenter
from galenic.pipeline import mask_files
from galenic.pipeline.masked import Frames, MaskedRows
from galenic.tasks import _segment_config, segment
from galenic.tasks._predict_config import TABLE, Config
from galenic.tasks._predict_opening import cohort_of, network_of
from galenic.tasks._segment_results import predicted, table_of

Array = np.ndarray[Any, np.dtype[Any]]


def apply(config: Config, finished: Run, run: Run) -> int:
    """Predict and, where there are masks, score; gives the number of parameters.

    Args:
        config: What was asked.
        finished: The run that was trained.
        run: Where it goes.
    """
    own = parse(_segment_config.Config, finished.config, str(finished.path))
    names = finished.read_json("metrics.json")["classes"]
    values = tuple(row["value"] for row in finished.read_json("structures.json")["structures"])
    cohort = cohort_of(config, finished, own.columns, "mask", ())
    backbone, _ = network_of(finished, own, cohort, run)
    encoder, decoder = segment.parts(backbone, own.decoder, len(names) + 1)
    decoder.load_state_dict(load_file(finished.path / segment.DECODER))
    objective = Segmenter(encoder, decoder)
    shapes = [_shape(cohort, row) for row in range(len(cohort))]
    frames = Frames(cohort, backbone, shapes)
    rows = np.arange(len(cohort))
    data = MaskedRows(frames, None, rows.tolist(), len(names) + 1)
    truth = None if cohort.label is None else Masks(cohort, values, own.threshold)
    labelled = ~missing(cohort.targets()) if truth is not None else np.zeros(len(cohort), bool)
    figures = np.full((len(rows), len(names), len(METRICS)), np.nan)
    listed = []
    size = config.batch_size or own.schedule.eval_batch_size
    for row, codes in enumerate(predicted(objective, data, rows, shapes, size)):
        mask_files.write(run, cohort, row, np.array([0, *values])[codes])
        counts = np.bincount(codes.ravel(), minlength=len(names) + 1)[1:]
        sizes = {f"pixels_{name}": count for name, count in zip(names, counts, strict=True)}
        listed.append({"row": row, "mask": mask_files.path_of(row, codes.ndim), **sizes})
        if truth is not None and labelled[row]:
            figures[row] = compare(codes, truth.codes(row), len(names), truth.spacing(row))
    run.write_text(TABLE, pd.DataFrame(listed).to_csv(index=False))
    if labelled.any():
        _score(config, cohort, names, rows[labelled], figures[labelled], run)
    return count_parameters(objective)[1]


def _shape(cohort: Cohort, row: int) -> tuple[int, ...]:
    """Sides [H, W] or [D, H, W] of one picture or volume."""
    value = next(iter(cohort.read(row).values()))
    found = value.pixels if isinstance(value, Image) else value.voxels
    return tuple(found.shape[1:])


def _score(
    config: Config, cohort: Cohort, names: list[str], rows: Array, figures: Array, run: Run
) -> None:
    groups, score = cohort.patient_ids[rows], config.score
    mean, _ = summarise(
        figures, groups, resamples=score.resamples, level=score.level, seed=config.seed
    )
    found = {name: figure.to_dict() for name, figure in mean.items()}
    run.write_json("metrics.json", {"main": MAIN, "kind": "mask", "classes": names, "test": found})
    run.write_table("cases.parquet", table_of(names, "test", rows, groups, figures))
