"""Classification and regression: a backbone, a tuner, a head, scored per patient."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from safetensors.torch import load_file, save
from torch import nn

from galenic import tuners
from galenic.core.errors import DataError
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.core.schedule import Schedule
from galenic.core.trainer import Validation, fit
from galenic.data.cohort import Cohort
from galenic.data.labels import require_seen
from galenic.data.splits import make_splits
from galenic.evaluation.metrics import MAIN, greater_is_better, point
from galenic.evaluation.protocol import score, to_scores
from galenic.models.prefix import frozen_prefix
from galenic.objectives.classification import Classifier, TargetKind
from galenic.pipeline.balance import balance_of
from galenic.pipeline.config import open_cohort
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.frozen import FrozenCache, Rows
from galenic.pipeline.inputs import Collate, Inputs
from galenic.pipeline.mistakes import extremes
from galenic.pipeline.opening import Opener, open_inputs, require_same
from galenic.pipeline.paired import PairedRows
from galenic.pipeline.votes import logits_of
from galenic.tasks import _heads, _losses
from galenic.tasks._classify_config import Config
from galenic.tasks._job import carry_out, layer_depths, reopened, warn_of_few_judges
from galenic.tasks._saliency import heat

Array = np.ndarray[Any, np.dtype[Any]]
J = TypeVar("J", bound="Job")


def run(config: Config, run: Run) -> None:
    """Open, split, tune, predict and score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, Job)


class Job:
    """One classify run, step by step; each step leaves what the next one needs.

    Args:
        config: What to do.
        run: Where it goes.
        opener: Opens the network and what it reads.
        head: Builds what stands on the pooled feature; None for what `config.head` says.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        *,
        opener: Opener = open_inputs,
        head: Callable[[Job], nn.Module] | None = None,
    ) -> None:
        self.config, self.run = config, run
        self._head = head
        self.fit_seconds = self.feature_seconds = 0.0
        self.steps = 0
        self.cohort = self._cohort()
        require_same(run, self.cohort)
        label = self.cohort.label
        if label is None:
            raise DataError(
                "The cohort has no label column.",
                where=self.cohort.name,
                next_step="--label COLUMN",
            )
        self.label = label
        self.targets = self.cohort.targets()
        self.splits = make_splits(self.cohort, config.split, config.seed)
        require_seen(label, self.targets, self.splits)
        config.score.require(label.kind, self.cohort.table)
        run.write_json("splits.json", self.splits.to_dict(config.split.how, config.seed))
        self.backbone, self.inputs = opener(
            self.cohort,
            self.splits.train,
            run,
            backbone=config.backbone,
            pool=config.pool,
            config=config.input,
        )
        self.collate = Collate.of(self.backbone)
        self.training_targets = self._training_targets()
        self.tuner = tuners.parse_tuner(config.tuner)
        self._features: dict[str, Array] = {}
        self.objective = self._objective()
        self.parameters = count_parameters(self.objective)

    # Building ---------------------------------------------------------------------------

    def _cohort(self) -> Cohort:
        return open_cohort(self.config.data, self.config.columns, quick=self.config.quick)

    def _pooled_encoder(self) -> nn.Module:
        """What gives the pooled feature, once the backbone is tuned."""
        return PooledEncoder(self.backbone, self.block)

    def _training_targets(self) -> Array:
        if not self.config.shuffle_labels:
            return self.targets
        return self.targets[self.splits.shuffled(len(self.targets), self.config.seed)]

    @property
    def target_unit(self) -> tuple[float, float]:
        """Centre and spread of a continuous target in training; 0 and 1 for other kinds."""
        if self.label.kind != "continuous":
            return 0.0, 1.0
        known = self.training_targets[self.splits.train]
        return float(known.mean()), float(known.std()) or 1.0

    def _objective(self) -> Classifier:
        kind, config = self.label.kind, self.config.head
        centre, spread = self.target_unit
        head = self._head(self) if self._head is not None else _heads.build(self)
        tuners.attach(self.backbone, self.tuner)
        self.hooks = tuners.hooks(self.backbone, self.tuner)
        self.block = self._block()
        return Classifier(
            self._pooled_encoder(),
            head,
            cast("TargetKind", kind),  # require_seen refuses all others
            centre=centre,
            spread=spread,
            label_smoothing=config.label_smoothing,
            pos_weight=config.pos_weight,
            unlabelled_weight=config.unlabelled_weight,
            class_loss=_losses.build(self),
            penalty=self.hooks.penalty,
        )

    @property
    def frozen(self) -> bool:
        """Whether nothing of the backbone trains."""
        return not any(p.requires_grad for p in self.backbone.parameters())

    def _block(self) -> int:
        """Leading blocks whose output is computed ahead."""
        if self.config.cache is None or self.frozen or self.config.input.augment is not None:
            return 0
        if self.inputs.modality == "volume" and self.backbone.inputs.form == "image":
            return 0  # one state a slice, not one a sample
        return frozen_prefix(self.backbone.network)

    def pooled(self, part: str) -> Array:
        """Pooled features of the untouched backbone for `train`, `val` or `test`."""
        if part not in self._features:
            started = time.perf_counter()
            self._features[part] = self._cache().pooled(
                self.backbone, self.inputs, getattr(self.splits, part).tolist()
            )
            self.feature_seconds += time.perf_counter() - started
        return self._features[part]

    def _cache(self) -> FrozenCache:
        folder = self.config.cache
        return FrozenCache(Path(folder) if folder else self.run.path / "work")

    def rows(self, part: str, *, training: bool = False) -> Rows:
        """The samples of one part, as far computed ahead as this arm allows."""
        config, rows = self.config, getattr(self.splits, part)
        labels = self.training_targets if part != "test" else self.targets
        augmented = training and config.input.augment is not None
        inputs = self.inputs
        if augmented:
            inputs = Inputs(
                self.cohort, self.backbone, augment=config.input.augment, seed=config.seed
            )
        elif self.frozen:
            return Rows(rows, labels, ahead={"features": self.pooled(part)})
        elif block := self.block:
            started = time.perf_counter()
            behind = self._cache().behind(self.backbone, inputs, rows, labels, block)
            self.feature_seconds += time.perf_counter() - started
            return behind
        return Rows(rows, labels, inputs=inputs)

    # Doing ------------------------------------------------------------------------------

    def train(self) -> None:
        """Fit what trains; with a neighbour head, or a checkpoint's own, that may be nothing."""
        if not any(p.requires_grad for p in self.objective.parameters()):
            return
        for stage in self.hooks.begun(self.objective.head):
            self.fit(
                self.objective,
                self.rows("train", training=True),
                self.rows("val"),
                schedule=self.config.schedule.model_copy(update=dict(stage.schedule)),
                collate=self.collate,
                folder=stage.name,
                after_step=self.hooks.after_step,
                depths=self._depths(),
            )

    def fit(
        self,
        objective: nn.Module,
        train: Rows | PairedRows,
        held: Rows | PairedRows,
        *,
        schedule: Schedule,
        collate: Callable[[list[Any]], dict[str, Any]],
        folder: str,
        after_step: Callable[[int, int], None] | None = None,
        depths: dict[str, int] | None = None,
        rates: dict[str, float] | None = None,
        seed: int | None = None,
    ) -> None:
        """Fit one objective, watched on `held`; without samples there, for all its epochs."""
        kind, name = self.label.kind, MAIN[self.label.kind]

        def monitor(outputs: dict[str, Array]) -> dict[str, float]:
            scores = to_scores(kind, outputs["logits"], self._unit())
            return {name: point(kind, name, self.training_targets[held.rows], scores)}

        validation = None
        if len(held):
            warn_of_few_judges(self.cohort.patient_ids[held.rows], schedule)
            validation = Validation(held, monitor, greater_is_better(name))
        else:
            schedule = schedule.model_copy(update={"patience": None})
        targets = self.training_targets[train.rows]
        drawn = balance_of(schedule.balance, self.cohort, train.rows, targets)
        result = fit(
            objective,
            train,
            schedule=schedule,
            collate=collate,
            folder=self.run.path / "checkpoints" / folder,
            seed=self.config.seed if seed is None else seed,
            validation=validation,
            sample_weights=drawn.weights,
            sample_groups=drawn.groups,
            depths=depths,
            rates=rates,
            after_step=after_step,
            log=self.run.log,
            resume=self.run.resumed,
        )
        self.fit_seconds += result.seconds
        self.steps += result.steps

    def _unit(self) -> tuple[float, float]:
        return self.objective.centre.item(), self.objective.spread.item()

    def _depths(self) -> dict[str, int] | None:
        return layer_depths(self.objective, self.backbone.network, self.config.schedule)

    def evaluate(self) -> None:
        """Predict validation and test, and write every number."""
        logits = {}
        for part in ("val", "test"):
            logits[part] = predict(
                self.objective,
                self.rows(part),
                collate=self.collate,
                batch_size=self.config.schedule.eval_batch_size,
            )["logits"]
        if self.config.head.kind == "knn":
            logits = {part: logits_of(self.label.kind, values) for part, values in logits.items()}
        self.tell(logits, self.cohort)

    def tell(self, logits: dict[str, Array], shown: Cohort) -> None:
        """Score the logits of `val` and `test`, and write every number.

        Args:
            logits: One row a sample of the part.
            shown: Whose samples the worst mistakes show.
        """
        rows = {part: getattr(self.splits, part) for part in logits}
        scored = score(
            self.label.kind,
            list(self.label.classes),
            targets={part: self.targets[found] for part, found in rows.items()},
            logits=logits,
            unit=self._unit(),
            groups={part: self.cohort.patient_ids[found] for part, found in rows.items()},
            rows=rows,
            table=self.cohort.table,
            config=self.config.score,
            seed=self.config.seed,
        )
        for name, document in scored.documents.items():
            self.run.write_json(name, document)
        self.run.write_table("predictions.parquet", scored.predictions)
        main = scored.documents["metrics.json"]["main"]
        value = scored.documents["metrics.json"]["test"][main]["value"]
        self.run.log({"event": "scored", main: value})
        look = partial(heat, self.objective, self.inputs, collate=self.collate)
        extremes(self.run, shown, self.label, scored.predictions, look)

    def save(self) -> None:
        """Write what was trained, in safetensors."""
        if not self.frozen:
            tuners.save(self.backbone, self.tuner, self.run.path / "adapter")
        self.run.write_bytes("head.safetensors", save(self.objective.head.state_dict()))


def load(run: Run) -> tuple[Job, Classifier]:
    """The fitted objective of a finished run, and the job that knows its data."""
    return restored(reopened(run, Config, Job))


def restored(job: J) -> tuple[J, Classifier]:
    """A job with what its run had trained."""
    run = job.run
    if not job.frozen:
        tuners.load(job.backbone, job.tuner, run.path / "adapter")
    job.objective.head.load_state_dict(load_file(run.path / "head.safetensors"))
    return job, job.objective.eval()
