"""Classification and regression: a backbone, a tuner, a head, scored per patient."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from safetensors.torch import load_file, save
from torch import nn

from galenic import tuners
from galenic.core.config import Config as BaseConfig
from galenic.core.errors import DataError
from galenic.core.files import atomic_write
from galenic.core.meters import Meter, count_parameters
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.core.schedule import Schedule
from galenic.core.seeding import seed_everything
from galenic.core.trainer import Validation, fit
from galenic.data.labels import require_seen
from galenic.data.splits import SplitConfig, Splits, make_splits
from galenic.evaluation.metrics import MAIN, greater_is_better, point
from galenic.evaluation.protocol import ScoreConfig, score, to_scores
from galenic.models.anatomy import depths
from galenic.models.backbone import Backbone, Pool
from galenic.models.heads import LinearHead, NeighbourHead
from galenic.models.prefix import frozen_prefix
from galenic.objectives.classification import Classifier
from galenic.pipeline.balance import balance_of
from galenic.pipeline.config import Columns, InputConfig, open_cohort
from galenic.pipeline.encoder import PooledEncoder
from galenic.pipeline.frozen import FrozenCache, Rows
from galenic.pipeline.inputs import Collate, Inputs
from galenic.pipeline.mistakes import worst
from galenic.pipeline.opening import open_inputs
from galenic.pipeline.votes import logits_of, votes_of

Array = np.ndarray[Any, np.dtype[Any]]
Opener = Callable[..., tuple[Backbone, Inputs]]


class HeadConfig(BaseConfig):
    """What stands on the pooled feature."""

    kind: Literal["linear", "knn"] = "linear"
    standardise: bool = Field(
        True, description="Centre and scale features by the frozen backbone's training features."
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    neighbours: int = Field(10, ge=1, description="k, for knn.")
    temperature: float = Field(0.07, gt=0, description="Of the votes, for knn.")


class Config(BaseConfig):
    """Everything that `classify` can be told."""

    data: str
    columns: Columns = Columns()
    split: SplitConfig = SplitConfig()
    backbone: str = Field("auto", description="auto: the builtin network of the modality.")
    pool: Pool = "auto"
    input: InputConfig = InputConfig()
    tuner: dict[str, Any] = Field({"method": "none"}, description="method and its own keys.")
    head: HeadConfig = HeadConfig()
    schedule: Schedule = Schedule()
    score: ScoreConfig = ScoreConfig()
    cache: str | None = Field(None, description="Folder of frozen outputs; None keeps none.")
    seed: int = Field(0, ge=0)
    shuffle_labels: bool = Field(
        False, description="Control: train on labels that were shuffled between patients."
    )
    quick: bool = Field(False, description="A few samples and steps, to see that it runs.")

    @field_validator("tuner")
    @classmethod
    def _known_tuner(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "method" not in value:
            raise ValueError("needs the key 'method'")
        return value


def run(config: Config, run: Run) -> None:
    """Open, split, tune, predict and score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, Job)


def carry_out(config: Config, run: Run, make: Callable[[Any, Run], Job]) -> None:
    """Make a job and do all of it, with its cost.

    Args:
        config: What to do.
        run: Where it goes.
        make: Of both, the job.
    """
    started = time.perf_counter()
    if config.quick:
        config = quickened(config)
    seed_everything(config.seed)
    with Meter() as meter:
        job = make(config, run)
        job.train()
        job.evaluate()
        job.save()
    trainable, total = job.parameters
    run.write_json(
        "cost.json",
        {
            "seconds": time.perf_counter() - started,
            "fit_seconds": job.fit_seconds,
            "feature_seconds": job.feature_seconds,
            "peak_memory_mb": meter.peak_memory_mb,
            "trainable": trainable,
            "total": total,
            "trainable_share": trainable / max(total, 1),
            "steps": job.steps,
            "cached": config.cache is not None,
        },
    )


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
        self.cohort = open_cohort(config.data, config.columns, quick=config.quick)
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
        run.write_json("splits.json", _describe(self.splits, config))
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

    def _training_targets(self) -> Array:
        if not self.config.shuffle_labels:
            return self.targets
        rng = np.random.default_rng([self.config.seed, 1])
        shuffled = self.targets.copy()
        known = np.concatenate([self.splits.train, self.splits.val])
        shuffled[known] = self.targets[rng.permutation(known)]
        return shuffled

    def _objective(self) -> Classifier:
        kind, head = self.label.kind, self.config.head
        outputs = 1 if kind in ("binary", "continuous") else len(self.label.classes)
        train = self.splits.train
        centre, spread = 0.0, 1.0
        if kind == "continuous":
            centre = float(self.training_targets[train].mean())
            spread = float(self.training_targets[train].std()) or 1.0
        module: nn.Module
        if self._head is not None:
            module = self._head(self)
        elif head.kind == "knn":
            width = self.backbone.width
            module = near = NeighbourHead(width, outputs, head.neighbours, head.temperature)
            votes = votes_of(kind, self.training_targets[train], outputs, centre, spread)
            near.remember(torch.from_numpy(self.pooled("train")), torch.from_numpy(votes))
        else:
            module = linear = LinearHead(self.backbone.width, outputs, head.dropout)
            if head.standardise:
                linear.standardise(torch.from_numpy(self.pooled("train")))
        tuners.attach(self.backbone, self.tuner)
        self.hooks = tuners.hooks(self.backbone, self.tuner)
        self.block = self._block()
        return Classifier(
            PooledEncoder(self.backbone, self.block),
            module,
            kind,
            centre=centre,
            spread=spread,
            label_smoothing=head.label_smoothing,
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
        """Fit what trains; a neighbour head has nothing to fit."""
        if not any(p.requires_grad for p in self.objective.parameters()):
            return
        kind = self.label.kind
        name = MAIN[kind]
        validation_targets = self.training_targets[self.splits.val]

        def monitor(outputs: dict[str, Array]) -> dict[str, float]:
            scores = to_scores(kind, outputs["logits"], self._unit())
            return {name: point(kind, name, validation_targets, scores)}

        train = self.splits.train
        drawn = balance_of(
            self.config.schedule.balance, self.cohort, train, self.training_targets[train]
        )
        before: dict[str, torch.Tensor] = {}
        for stage in self.hooks.stages:
            if stage.rewind_head and before:
                self.objective.head.load_state_dict(before)
            before = {n: t.clone() for n, t in self.objective.head.state_dict().items()}
            stage.begin()
            result = fit(
                self.objective,
                self.rows("train", training=True),
                schedule=self.config.schedule.model_copy(update=dict(stage.schedule)),
                collate=self.collate,
                folder=self.run.path / "checkpoints" / stage.name,
                seed=self.config.seed,
                validation=Validation(self.rows("val"), monitor, greater_is_better(name)),
                sample_weights=drawn.weights,
                sample_groups=drawn.groups,
                depths=self._depths(),
                after_step=self.hooks.after_step,
                log=self.run.log,
                resume=self.run.resumed,
            )
            self.fit_seconds += result.seconds
            self.steps += result.steps

    def _unit(self) -> tuple[float, float]:
        return self.objective.centre.item(), self.objective.spread.item()

    def _depths(self) -> dict[str, int] | None:
        if self.config.schedule.layer_decay == 1.0:
            return None
        inner = depths(self.backbone.network)
        last = max(inner.values(), default=0) + 1
        found = {f"encoder.backbone.network.{name}": depth for name, depth in inner.items()}
        names = (name for name, _ in self.objective.named_parameters())
        return {name: found.get(name, last) for name in names}

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
        scored = score(
            self.label.kind,
            list(self.label.classes),
            targets={part: self.targets[getattr(self.splits, part)] for part in logits},
            logits=logits,
            unit=self._unit(),
            groups={p: self.cohort.patient_ids[getattr(self.splits, p)] for p in logits},
            rows={part: getattr(self.splits, part) for part in logits},
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
        worst(self.run, self.cohort, self.label, scored.predictions)

    def save(self) -> None:
        """Write what was trained, in safetensors."""
        if not self.frozen:
            tuners.save(self.backbone, self.tuner, self.run.path / "adapter")
        atomic_write(self.run.path / "head.safetensors", save(self.objective.head.state_dict()))


def load(run: Run) -> tuple[Job, Classifier]:
    """The fitted objective of a finished run, and the job that knows its data."""
    from galenic.core.config import parse

    values = run.config
    config = parse(Config, values)
    return restored(Job(quickened(config) if config.quick else config, run))


def restored(job: Job) -> tuple[Job, Classifier]:
    """A job with what its run had trained."""
    run = job.run
    if not job.frozen:
        tuners.load(job.backbone, job.tuner, run.path / "adapter")
    job.objective.head.load_state_dict(load_file(run.path / "head.safetensors"))
    return job, job.objective.eval()


def quickened(config: Any) -> Any:
    """A copy that takes two steps and scores roughly."""
    schedule = config.schedule.model_copy(
        update={"epochs": 1, "max_steps": 2, "batch_size": 8, "eval_batch_size": 16}
    )
    score_config = config.score.model_copy(update={"resamples": 50})
    return config.model_copy(update={"schedule": schedule, "score": score_config})


def _describe(splits: Splits, config: Config) -> dict[str, Any]:
    parts = {part: getattr(splits, part).tolist() for part in ("train", "val", "test")}
    return {
        "how": config.split.how,
        "seed": config.seed,
        "counts": {part: len(rows) for part, rows in parts.items()},
        **parts,
    }
