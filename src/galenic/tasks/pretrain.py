"""Train a network on samples without labels; what comes out is a backbone for other runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field

from galenic import tuners
from galenic.core.config import Config as BaseConfig
from galenic.core.errors import ConfigError
from galenic.core.meters import count_parameters
from galenic.core.prediction import evaluating, predict, to_device
from galenic.core.run import Run
from galenic.core.schedule import PlainSchedule, Schedule
from galenic.core.seeding import stream
from galenic.core.trainer import Validation, fit
from galenic.data.augment import AugmentConfig
from galenic.data.splits import SplitConfig, make_splits, with_unlabelled
from galenic.models.export import export
from galenic.models.trained import TENSORS
from galenic.objectives import pretraining
from galenic.pipeline.captions import CaptionConfig, Captions
from galenic.pipeline.config import Columns, InputConfig, open_cohort
from galenic.pipeline.inputs import Collate, Inputs
from galenic.pipeline.opening import open_inputs, require_same
from galenic.pipeline.sources import Normalisation, normalisation
from galenic.pipeline.unlabelled import Unlabelled
from galenic.tasks._job import carry_out
from galenic.tasks._pretrain_results import draw_pictures, write_results
from galenic.tuners.full import Config as Full

Array = np.ndarray[Any, np.dtype[Any]]
# What a run writes; nobody is classified.
FILES = (
    "config.yaml",
    "provenance.json",
    "status.json",
    "log.jsonl",
    "splits.json",
    "metrics.json",
    "cost.json",
    "losses.parquet",
    TENSORS,
)
TABLE = "losses.parquet"
NEEDS_LABELS = False
# Samples whose reconstruction the report shows.
SHOWN = 6


class Config(BaseConfig):
    """Everything that `pretrain` can be told."""

    data: str
    columns: Columns = Columns()
    split: SplitConfig = SplitConfig()
    backbone: str = Field("builtin:vit?size=small", description="#random forgets its weights.")
    input: InputConfig = InputConfig()
    pretraining: dict[str, Any] = Field({"method": "mae"}, description="method and its own keys.")
    captions: CaptionConfig | None = Field(None, description="For methods that read words too.")
    normalise_by: str | None = Field(
        None,
        description="Column that names the source of a picture (`site`, say): each source is "
        "normalised by the mean and standard deviation of its own training pictures. None: all by "
        "those of the backbone.",
    )
    schedule: PlainSchedule = Schedule(epochs=100, lr=1.5e-4, keep_best=False)
    resamples: int = Field(2000, ge=0, description="Bootstrap draws of patients.")
    seed: int = Field(0, ge=0)
    quick: bool = Field(False, description="A few samples and steps, to see that it runs.")


def run(config: Config, run: Run) -> None:
    """Open, split, train and judge on held-out samples; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, Job)


class Job:
    """One pretrain run, step by step; each step leaves what the next one needs.

    Args:
        config: What to do.
        run: Where it goes.
    """

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self.fit_seconds = self.feature_seconds = 0.0
        self.steps = 0
        self.shown: Array | None = None
        self.method = pretraining.parse(config.pretraining)
        self.views = pretraining.views(self.method)
        if self.views > 1 and config.input.augment is None:
            raise ConfigError(
                f"'{config.pretraining['method']}' compares {self.views} views of a sample, and "
                "nothing is varied between them.",
                where="input.augment",
                next_step="input.augment.crop=[0.2,1] input.augment.flip=true",
            )
        self.cohort = open_cohort(config.data, config.columns, quick=config.quick)
        require_same(run, self.cohort)
        self.captions = self._captions()
        labelled = make_splits(self.cohort, config.split, config.seed)
        self.splits = with_unlabelled(self.cohort, config.split, labelled)
        self.backbone, self.inputs = open_inputs(
            self.cohort,
            self.splits.train,
            run,
            backbone=config.backbone,
            config=config.input,
        )
        self.normalisation = self._normalisation()
        if self.normalisation is not None:
            self.inputs = self._inputs(None)
        self._describe()
        self.collate = Collate(self.captions.padding if self.captions else None)
        self.objective = pretraining.build(self.backbone, self.method, config.seed)
        self.parameters = count_parameters(self.objective)

    def _captions(self) -> Captions | None:
        """What is said of the samples, where the method reads it."""
        config, name = self.config.captions, self.config.pretraining["method"]
        tokenizer = pretraining.tokenizer(self.method)
        if tokenizer is None and config is not None:
            raise ConfigError(
                f"'{name}' as it is set reads no captions.",
                where="captions",
                next_step="captions=null",
            )
        if tokenizer is None:
            return None
        if config is None:
            raise ConfigError(
                f"'{name}' reads captions beside the pictures, and none are named.",
                where="captions",
                expected="captions.column=COLUMN, or captions={} for the label",
            )
        return Captions(self.cohort, config, tokenizer, self.config.seed)

    def _normalisation(self) -> Normalisation | None:
        """Of each source, where that is asked for."""
        column, splits = self.config.normalise_by, self.splits
        if column is None:
            return None
        held = np.concatenate([splits.val, splits.test])
        spec = self.backbone.inputs
        found = normalisation(self.cohort, splits.train, held, spec, column)
        self.run.write_json("normalisation.json", found.to_dict())
        return found

    def _inputs(self, augment: AugmentConfig | None, scale: float = 1, *names: str) -> Inputs:
        """What the network reads, drawn from the stream `names`."""
        seed = stream(self.config.seed, *names) if names else self.config.seed
        return Inputs(
            self.cohort,
            self.backbone,
            augment=augment,
            seed=seed,
            scale=scale,
            normalisation=self.normalisation,
        )

    def _describe(self) -> None:
        split = self.splits.to_dict(self.config.split.how, self.config.seed)
        self.run.write_json("splits.json", split)
        told = None if self.captions is None else self.captions.column
        self.run.update_provenance(data={"kind": "unlabelled", "classes": [], "captions": told})

    def rows(self, part: str, *, training: bool = False) -> Unlabelled:
        """The samples of one part; held-out ones are varied only where views are compared."""
        config, inputs = self.config, self.inputs
        augment = config.input.augment if training or self.views > 1 else None
        scale = pretraining.scale(self.method)
        if augment is not None or scale > 1:
            inputs = self._inputs(augment, scale)
        small, local = pretraining.local_views(self.method), None
        if small is not None and augment is not None:
            crop = augment.model_copy(update={"crop": small.crop})
            local = self._inputs(crop, small.share, "local"), small.count
        return Unlabelled(
            getattr(self.splits, part),
            inputs,
            self.views,
            config.seed,
            self.captions,
            local=local,
            epochs=getattr(self.objective, "set_epoch", None) if training else None,
        )

    def train(self) -> None:
        """Fit the objective, watched on validation samples."""

        def score(outputs: dict[str, Array]) -> dict[str, float]:
            whole = pretraining.together(self.method, outputs)
            loss = outputs["losses"].mean(dtype=np.float64) if whole is None else whole
            return {"loss": float(loss)}

        result = fit(
            self.objective,
            self.rows("train", training=True),
            schedule=self.config.schedule,
            collate=self.collate,
            folder=self.run.path / "checkpoints" / "pretrain",
            seed=self.config.seed,
            validation=Validation(self.rows("val"), score, greater_is_better=False),
            after_step=pretraining.after_step(self.objective, self.method),
            log=self.run.log,
            resume=self.run.resumed,
        )
        self.fit_seconds, self.steps = result.seconds, result.steps

    def evaluate(self) -> None:
        """Loss of held-out samples, and what the method makes of some."""
        outputs = {
            part: predict(
                self.objective,
                self.rows(part),
                collate=self.collate,
                batch_size=self.config.schedule.eval_batch_size,
            )
            for part in ("val", "test")
        }
        write_results(self, outputs)
        held = self.rows("test")
        batch = self.collate([held[place] for place in range(len(held.rows[:SHOWN]))])
        device = next(self.objective.parameters()).device
        with evaluating(self.objective), torch.inference_mode():
            self.shown = pretraining.pictures(self.objective, self.method, to_device(batch, device))

    def save(self) -> None:
        """Write the network, for `backbone=RUN` and in the layouts of other libraries; then draw."""
        pretraining.finish(self.objective, self.method)
        self.backbone.network.requires_grad_(True)
        tuners.save(self.backbone, Full(), self.run.path / "adapter")
        export(self.backbone, self.run.path / "encoder")
        if self.shown is not None:
            rows = self.splits.test[: len(self.shown)]
            draw_pictures(self.run, self.shown, [self.inputs.way(int(row)).spec for row in rows])
