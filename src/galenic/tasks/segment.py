"""Segmentation: a frozen or tuned backbone, a decoder, and a class for every pixel.

After Baharoon et al., 2023, arXiv 2312.02366.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save
from torch import nn

from galenic import tuners
from galenic.core.errors import ConfigError, DataError
from galenic.core.meters import count_parameters
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.trainer import Validation
from galenic.data.labels import refuse_unseen, require_kind
from galenic.data.masks import MOST_VALUES, MaskFaults, Masks, survey
from galenic.data.splits import make_splits
from galenic.evaluation.masks import MAIN
from galenic.models.backbone import Backbone
from galenic.models.decoders import LinearDecoder, UNetDecoder
from galenic.objectives.segmentation import Segmenter
from galenic.pipeline.balance import balance_of
from galenic.pipeline.config import open_cohort
from galenic.pipeline.frozen import FrozenCache
from galenic.pipeline.inputs import Collate
from galenic.pipeline.maps import MapEncoder
from galenic.pipeline.masked import Frames, MaskedRows
from galenic.pipeline.opening import open_inputs, require_same
from galenic.tasks._job import carry_out, fit_stages, layer_depths, reopened
from galenic.tasks._segment_config import Config, DecoderConfig
from galenic.tasks._segment_results import write_results

__all__ = ["FILES", "TABLE", "Config", "Job", "load", "run"]

Array = np.ndarray[Any, np.dtype[Any]]
FILES = (
    "config.yaml",
    "provenance.json",
    "status.json",
    "log.jsonl",
    "splits.json",
    "metrics.json",
    "cost.json",
    "structures.json",
    "overlays.json",
    "cases.parquet",
    "decoder.safetensors",
)
TABLE = "cases.parquet"
LABELS = "masks"
DECODER = "decoder.safetensors"
# Bytes of feature maps that may be computed ahead; beyond it the backbone runs at every step.
MOST_AHEAD = 4 * 2**30
ROWS_NAMED = 6


def run(config: Config, run: Run) -> None:
    """Open, split, train, predict and score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, Job)


def load(run: Run) -> tuple[Job, Segmenter]:
    """The trained objective of a finished run, and the job that knows its data."""
    job = reopened(run, Config, Job)
    if not job.frozen:
        tuners.load(job.backbone, job.tuner, run.path / "adapter")
    job.objective.decoder.load_state_dict(load_file(run.path / DECODER))
    return job, job.objective.eval()


def parts(backbone: Backbone, decoder: DecoderConfig, classes: int) -> tuple[MapEncoder, nn.Module]:
    """Encoder and untrained decoder.

    Args:
        backbone: With its tuner, if any.
        decoder: Which.
        classes: Codes there are, background included.
    """
    encoder = MapEncoder(backbone, decoder.levels if decoder.kind == "unet" else 1)
    channels, size = [shape[0] for shape in encoder.shapes], backbone.inputs.size or ()
    if decoder.kind == "unet":
        return encoder, UNetDecoder(channels, classes, size, decoder.width)
    return encoder, LinearDecoder(channels, classes, size)


class Job:
    """One segment run, step by step; each step leaves what the next one needs.

    Args:
        config: What to do.
        run: Where it goes.
    """

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self.fit_seconds = self.feature_seconds = 0.0
        self.steps = 0
        self.cohort = open_cohort(config.data, config.columns, quick=config.quick)
        require_same(run, self.cohort)
        self.splits = make_splits(self.cohort, config.split, config.seed)
        self.label = require_kind(self.cohort.label, "mask", self.cohort.table, self.cohort.name)
        self.survey = survey(self.cohort, config.threshold)
        _refuse(self.survey.faults, self.cohort.name)
        self.structures = self._structures()
        run.write_json("splits.json", self.splits.to_dict(config.split.how, config.seed))
        self.backbone, _ = open_inputs(
            self.cohort, self.splits.train, run, backbone=config.backbone, config=config.input
        )
        self.collate = Collate()
        values = self.survey.values
        self.masks = Masks(self.cohort, values, config.threshold)
        self.taught = Masks(self.cohort, values, config.threshold, self._shuffled())
        self.tuner = tuners.parse_tuner(config.tuner)
        self.objective = self._objective()
        self.parameters = count_parameters(self.objective)
        self._packed: dict[str, list[Array] | None] = {}

    # Building ---------------------------------------------------------------------------

    def _structures(self) -> list[str]:
        """Names of the values in the masks.

        Raises:
            DataError: If there are none, too many, or training has not all of them.
            ConfigError: If the names are too many or too few.
        """
        values, column = self.survey.values, self.label.columns[0]
        if not values:
            raise DataError(
                "Every mask has only background.",
                where=f"{self.cohort.name}, column '{column}'",
                expected="0 for background, 1, 2, ... for structures",
            )
        if len(values) > MOST_VALUES and not self.config.structures:
            raise DataError(
                f"The masks hold {len(values)} different values.",
                where=f"{self.cohort.name}, column '{column}'",
                expected=f"at most {MOST_VALUES} structures, or their names",
                next_step="If they are greys of one structure: threshold=128",
            )
        plain = [str(value) for value in values] if len(values) > 1 else ["foreground"]
        names = self.config.structures or plain
        if len(names) != len(values):
            raise ConfigError(
                f"{len(names)} structures are named; the masks hold {', '.join(map(str, values))}.",
                where="structures",
                expected=f"{len(values)} names",
            )
        taught = set().union(*(self.survey.held[row] for row in self.splits.train))
        unseen = [name for name, value in zip(names, values, strict=True) if value not in taught]
        refuse_unseen(unseen, column)
        return names

    def _shuffled(self) -> Array | None:
        """Row whose mask is taught for each row; None for its own."""
        if not self.config.shuffle_labels:
            return None
        return self.splits.shuffled(len(self.cohort), self.config.seed)

    def _objective(self) -> Segmenter:
        config, decoder = self.config, self.config.decoder
        tuners.attach(self.backbone, self.tuner)
        self.hooks = tuners.hooks(self.backbone, self.tuner)
        encoder, head = parts(self.backbone, decoder, len(self.structures) + 1)
        shapes = self.survey.shapes
        self.frames = Frames(self.cohort, self.backbone, shapes)
        self.varied = Frames(self.cohort, self.backbone, shapes, config.input.augment)
        return Segmenter(
            encoder,
            head,
            dice=config.loss.dice,
            cross_entropy=config.loss.cross_entropy,
            penalty=self.hooks.penalty,
        )

    @property
    def frozen(self) -> bool:
        """Whether nothing of the backbone trains."""
        return not any(p.requires_grad for p in self.backbone.parameters())

    def rows(self, part: str, *, masks: bool = True, training: bool = False) -> MaskedRows:
        """The frames of one part, as far computed ahead as this arm allows.

        Args:
            part: train, val or test.
            masks: Whether they come with their masks.
            training: Whether they are varied.
        """
        varied = training and self.config.input.augment is not None
        return MaskedRows(
            self.varied if varied else self.frames,
            self.taught if masks else None,
            getattr(self.splits, part).tolist(),
            len(self.structures) + 1,
            seed=self.config.seed,
            packed=None if varied else self._ahead(part),
        )

    def _ahead(self, part: str) -> list[Array] | None:
        """Feature maps of a frozen backbone, once a run; None where they are too many."""
        encoder = self.objective.encoder
        assert isinstance(encoder, MapEncoder)
        if part not in self._packed:
            self._packed[part] = None
            places = self.frames.of(getattr(self.splits, part).tolist()).tolist()
            values = sum(math.prod(shape) for shape in encoder.shapes)
            if self.frozen and 4 * values * len(self.frames) <= MOST_AHEAD:
                started = time.perf_counter()
                folder = self.config.cache
                cache = FrozenCache(Path(folder) if folder else self.run.path / "work")
                self._packed[part] = cache.packed(encoder, self.frames, places)
                self.feature_seconds += time.perf_counter() - started
        return self._packed[part]

    # Doing ------------------------------------------------------------------------------

    def train(self) -> None:
        """Fit decoder and tuner, watched by the Dice of validation."""

        def monitor(outputs: dict[str, Array]) -> dict[str, float]:
            both, ours, true = np.moveaxis(outputs["overlap"].sum(axis=0), -1, 0)
            return {MAIN: float((2 * both / np.maximum(ours + true, 1)).mean())}

        train, held = self.rows("train", training=True), self.rows("val")
        rows = train.frames.row[train.places]
        schedule = self.config.schedule
        fit_stages(
            self, self.objective.decoder, train, Validation(held, monitor), collate=self.collate,
            drawn=balance_of(schedule.balance, self.cohort, rows, self.cohort.targets()[rows]),
            depths=layer_depths(self.objective, self.backbone.network, schedule),
        )  # fmt: skip

    def evaluate(self) -> None:
        """Predict validation and test, and write every number and mask."""
        write_results(self)

    def save(self) -> None:
        """Write what was trained, in safetensors."""
        if not self.frozen:
            tuners.save(self.backbone, self.tuner, self.run.path / "adapter")
        self.run.write_bytes(DECODER, save(self.objective.decoder.state_dict()))


def _refuse(faults: MaskFaults, name: str) -> None:
    """Refuse masks that do not lie on their pictures; tell of those that are empty.

    Raises:
        DataError: With the first rows.
    """
    for rows, found, expected in (
        (faults.size, "have another size than their pictures", "a mask of the picture's size"),
        (faults.spacing, "have another spacing than their pictures", "the picture's spacing"),
        (faults.place, "lie elsewhere in space than their pictures", "the picture's affine"),
        (
            [row for row, _ in faults.broken],
            f"cannot be read: {faults.broken[0][1] if faults.broken else ''}",
            "a mask that can be read",
        ),
    ):
        if rows:
            shown = ", ".join(map(str, rows[:ROWS_NAMED]))
            raise DataError(
                f"{len(rows)} mask(s) {found}",
                where=f"{name}, rows {shown}{' ...' if len(rows) > ROWS_NAMED else ''}",
                expected=expected,
                next_step="`galenic check` lists every such row.",
            )
    if faults.empty:
        tell(f"{len(faults.empty)} masks are empty: their samples teach background alone.")
