"""Detection: boxes in images, scored by box, by slice and by patient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.torch import load_file, save
from torch import Tensor, nn

from galenic import tuners
from galenic.core.fingerprint import fingerprint_module
from galenic.core.inputs import InputSpec
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.trainer import Validation
from galenic.data.box_cohort import boxes_of, sizes_of
from galenic.data.boxes import Boxes, Found
from galenic.data.cohort import Cohort
from galenic.data.labels import refuse_unseen, require_kind
from galenic.data.prevalence import PrevalenceConfig, counts_of, make_prevalence_split
from galenic.data.splits import PARTS, make_splits
from galenic.evaluation.detection import coco, match
from galenic.models.backbone import Backbone
from galenic.models.detection.fcos import Fcos
from galenic.models.detection.huggingface import open_detector
from galenic.objectives.detection import Detection
from galenic.pipeline.balance import balance_of
from galenic.pipeline.boxed import BoxRows, collate, found_of, truth_of
from galenic.pipeline.config import open_cohort
from galenic.pipeline.opening import describe, open_inputs, require_same
from galenic.tasks._detect_config import Config, DetectorConfig
from galenic.tasks._detect_results import write_results
from galenic.tasks._job import carry_out, fit_stages, layer_depths, reopened

__all__ = ["FILES", "TABLE", "Config", "Job", "load", "run"]

Array = np.ndarray[Any, np.dtype[Any]]
DETECTOR = "detector.safetensors"
# What a run writes; nobody is classified.
FILES = (
    "config.yaml",
    "provenance.json",
    "status.json",
    "log.jsonl",
    "splits.json",
    "metrics.json",
    "cost.json",
    "detection.json",
    "detections.json",
    "slices.parquet",
    "patients.parquet",
    DETECTOR,
)
TABLE = "slices.parquet"
LABELS = "boxes"
BACKBONE = "pyramid.backbone."


def run(config: Config, run: Run) -> None:
    """Open, split, train, detect and score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, make)


def make(config: Config, run: Run) -> Job:
    """The job; a quick one keeps all rows, since a few seldom hold patients of both kinds."""
    if config.quick:
        config = config.model_copy(update={"prevalence": PrevalenceConfig()})
    return Job(config, run)


def load(run: Run) -> tuple[Job, nn.Module]:
    """The trained detector of a finished run, and the job that knows its data."""
    job = reopened(run, Config, make)
    if job.adapted:
        tuners.load(job.detector.backbone, job.tuner, run.path / "adapter")
    return job, restored(job.detector, run).eval()


def restored(detector: nn.Module, run: Run) -> nn.Module:
    """`detector` with the tensors of a finished run; those of a backbone below it stay."""
    state = load_file(run.path / DETECTOR)
    detector.load_state_dict({**detector.state_dict(), **state})
    return detector


class Job:
    """One detect run, step by step; each step leaves what the next one needs.

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
        whole = make_splits(self.cohort, config.split, config.seed)
        label = require_kind(self.cohort.label, "boxes", self.cohort.table, self.cohort.name)
        self.sizes = sizes_of(self.cohort)
        self.boxes, self.faults = boxes_of(self.cohort, self.sizes)
        self.classes = label.classes
        self.positive = np.array([len(boxes) > 0 for boxes in self.boxes])
        patients = self.cohort.patient_ids
        self.splits = make_prevalence_split(
            whole, patients, self.positive, config.prevalence, config.seed
        )
        self._refuse_unseen(label.columns[0])
        self.native = {
            part: counts_of(getattr(whole, part), patients, self.positive) for part in PARTS
        }
        self._describe()
        self.taught = self._shuffled() if config.shuffle_labels else self.boxes
        self.tuner = tuners.parse_tuner(config.tuner)
        self.detector, self.inputs = self._open()
        self.objective = Detection(
            self.detector, config.detector.box_loss, penalty=self.hooks.penalty
        )
        self.parameters = count_parameters(self.objective)

    # Building ---------------------------------------------------------------------------

    def _refuse_unseen(self, column: str) -> None:
        def named(rows: Array) -> set[int]:
            return {int(code) for row in rows for code in self.boxes[row].classes}

        later = named(np.concatenate([self.splits.val, self.splits.test]))
        unseen = sorted(later - named(self.splits.train))
        refuse_unseen([self.classes[code] for code in unseen], column)

    def _describe(self) -> None:
        used = {
            part: counts_of(getattr(self.splits, part), self.cohort.patient_ids, self.positive)
            for part in PARTS
        }
        document = self.splits.to_dict(self.config.split.how, self.config.seed)
        prevalence = {"native": self.native, "used": used}
        self.run.write_json("splits.json", document | {"prevalence": prevalence})
        if self.faults.lost:
            tell(f"{self.faults.lost} boxes without area in the image are left out.")

    def _shuffled(self) -> list[Boxes]:
        """Boxes of other images in training and validation, at the same place of the image."""
        source = self.splits.shuffled(len(self.cohort), self.config.seed)
        sizes = [tuple(size) for size in self.sizes]
        return [
            self.boxes[other].scaled(sizes[other], sizes[row]) if other != row else self.boxes[row]
            for row, other in enumerate(source)
        ]

    def _open(self) -> tuple[Any, InputSpec]:
        if self.config.detector.kind != "fcos":
            self.hooks = tuners.Hooks()
            return transformers_of(self.config, self.classes, self.cohort, self.run)
        backbone, _ = open_inputs(
            self.cohort,
            self.splits.train,
            self.run,
            backbone=self.config.backbone,
            config=self.config.input,
        )
        tuners.attach(backbone, self.tuner)
        self.hooks = tuners.hooks(backbone, self.tuner)
        return fcos_on(backbone, self.config.detector, len(self.classes)), backbone.inputs

    @property
    def adapted(self) -> bool:
        """Whether a backbone below the detector trains."""
        return isinstance(self.detector, Fcos) and any(
            parameter.requires_grad for parameter in self.detector.backbone.parameters()
        )

    def rows(self, part: str, *, training: bool = False) -> BoxRows:
        """The images of one part with the boxes that are taught."""
        return BoxRows(
            self.cohort,
            getattr(self.splits, part),
            self.taught,
            self.sizes,
            self.inputs,
            augment=self.config.input.augment if training else None,
            seed=self.config.seed,
        )

    # Doing ------------------------------------------------------------------------------

    def train(self) -> None:
        """Fit the detector, watched by average precision on validation."""
        held = self.rows("val")
        truth = truth_of(self.taught, held.rows)

        def monitor(outputs: dict[str, Array]) -> dict[str, float]:
            found = self._found(outputs["detections"], held.rows)
            matched = match(truth, found, len(held), len(self.classes))
            figures = coco(matched, np.ones((1, len(held))))[0]
            return {"map_50": float(np.nan_to_num(figures[1]))}

        train = self.rows("train", training=True)
        targets = np.array([int(len(self.taught[row]) > 0) for row in train.rows])
        drawn = balance_of(self.config.schedule.balance, self.cohort, train.rows, targets)
        fit_stages(
            self, self.detector, train, Validation(held, monitor),
            collate=collate, drawn=drawn, depths=self._depths(),
        )  # fmt: skip

    def _depths(self) -> dict[str, int] | None:
        if not isinstance(self.detector, Fcos):
            return None
        network = self.detector.backbone.network
        return layer_depths(self.objective, network, self.config.schedule)

    def _found(self, detections: Array, rows: Array) -> Found:
        return found_in(detections, self.sizes[rows], self.inputs, self.config.detector)

    def evaluate(self) -> None:
        """Detect in validation and test, and write every number."""
        found = {}
        for part in ("val", "test"):
            detections = predict(
                self.objective,
                self.rows(part),
                collate=collate,
                batch_size=self.config.schedule.eval_batch_size,
            )["detections"]
            found[part] = self._found(detections, getattr(self.splits, part))
        write_results(self, found)

    def save(self) -> None:
        """Write what was trained, in safetensors."""
        if self.adapted:
            tuners.save(self.detector.backbone, self.tuner, self.run.path / "adapter")
        self.run.write_bytes(DETECTOR, save(_own(self.detector)))


def found_in(detections: Array, sizes: Array, inputs: InputSpec, config: DetectorConfig) -> Found:
    """Detections [n, D, 6] of a network in the pixels of images of `sizes` [n, 2]."""
    assert inputs.size is not None
    height, width = inputs.size
    return found_of(detections, sizes, (width, height), config.least_score)


def fcos_on(backbone: Backbone, config: DetectorConfig, classes: int) -> Fcos:
    """A fresh pyramid and head on a backbone."""
    return Fcos(
        backbone,
        classes,
        width=config.width,
        strides=config.strides,
        most=config.most,
        overlap=config.overlap,
    )


def transformers_of(
    config: Config, classes: tuple[str, ...], cohort: Cohort, run: Run
) -> tuple[nn.Module, InputSpec]:
    """A detector of transformers with a fresh head, and what it reads; `run` is told of it."""
    at = config.detector
    network = open_detector(at.kind, classes, most=at.most, overlap=at.overlap)
    weights = {"backbone": at.kind, "fingerprint": fingerprint_module(network)}
    run.update_provenance(data=describe(cohort), weights=weights)
    sides = config.input.sides
    if sides is None:
        return network, network.inputs
    size = (sides, sides) if isinstance(sides, int) else sides
    return network, replace(network.inputs, size=size)


def _own(detector: nn.Module) -> dict[str, Tensor]:
    """The tensors of a detector but those of a backbone below it; tied ones are copied."""
    return {
        name: tensor.detach().clone()
        for name, tensor in detector.state_dict().items()
        if not (isinstance(detector, Fcos) and name.startswith(BACKBONE))
    }
