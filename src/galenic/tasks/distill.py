"""Distillation: a vision transformer learns from labels and from a teacher, each by its token.

Touvron et al., "Training data-efficient image transformers & distillation through attention",
ICML 2021, arXiv 2012.12877.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from galenic.core import registry
from galenic.core.config import Config as BaseConfig
from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError
from galenic.core.prediction import predict
from galenic.core.progress import tell
from galenic.core.recipes import open_recipe
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.models.backbone import Backbone, Opened, open_backbone
from galenic.models.heads import NeighbourHead
from galenic.models.token import with_token
from galenic.objectives.classification import Classifier
from galenic.objectives.distillation import SEEN, Distiller, Mode, TwoHeads
from galenic.pipeline.encoder import TokenPairEncoder
from galenic.pipeline.frozen import Rows
from galenic.pipeline.inputs import Array, Collate, Example, Inputs
from galenic.pipeline.opening import Opener, open_inputs
from galenic.pipeline.votes import logits_of
from galenic.tasks import classify
from galenic.tasks._job import carry_out, reopened
from galenic.tasks._losses import OF_CLASSES
from galenic.tasks._side import classified

# The recipe of the teacher that is trained where none is named.
TEACHER = "linear"


class DistillConfig(BaseConfig):
    """Who teaches, and how."""

    teacher: str | None = Field(
        None,
        description="Run folder of a classifier; None: a linear probe of the builtin network of "
        "pictures is trained first, on the same split.",
    )
    mode: Mode = Field("hard", description="hard: the teacher's decision. soft: probabilities.")
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of the teacher; 0: labels alone.")
    tau: float = Field(3.0, gt=0, description="Temperature of soft.")


class Config(classify.Config):
    """Everything that `distill` can be told; `head` is heeded in its dropout and its loss."""

    backbone: str = Field("builtin:vit?size=tiny", description="The student: a ViT or a DeiT.")
    tuner: dict[str, Any] = Field({"method": "full"}, description="method and its own keys.")
    distill: DistillConfig = DistillConfig()


def run(config: Config, run: Run) -> None:
    """Open, split, find or train the teacher, distil, predict and score.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, DistillJob)


def load(run: Run) -> tuple[classify.Job, Classifier]:
    """The fitted student of a finished run, and the job that knows its data."""
    return classify.restored(reopened(run, Config, DistillJob))


class DistillJob(classify.Job):
    """One distillation, step by step.

    Attributes:
        objective: The student.
    """

    config: Config
    objective: Distiller

    def __init__(self, config: Config, run: Run) -> None:
        self._answers: Array | None = None
        # What a teacher reads that is asked in every step.
        self._reads: Inputs | None = None
        super().__init__(config, run, opener=open_student, head=_two_heads)

    def _pooled_encoder(self) -> TokenPairEncoder:
        return TokenPairEncoder(self.backbone, self.block)

    def _objective(self) -> Distiller:
        if self.label.kind not in OF_CLASSES:
            raise ConfigError(
                f"The label is {self.label.kind}: a teacher has no class to teach.",
                expected=f"a label that is {', '.join(OF_CLASSES)}",
            )
        student = super()._objective()
        if self.frozen:
            raise ConfigError(
                "Nothing of the student trains.",
                where="tuner.method",
                next_step="tuner.method=full",
            )
        how = self.config.distill
        return Distiller(student, mode=how.mode, alpha=how.alpha, tau=how.tau)

    def train(self) -> None:
        """Ask the teacher once about every training sample, or anew about every changed one."""
        job, teacher = self._teacher()
        inputs = Inputs(self.cohort, job.backbone)
        if self.config.input.augment is not None:
            self.objective.learn_from(teacher)
            self._reads = inputs
        else:
            rows = Rows(self.splits.train.tolist(), self.training_targets, inputs=inputs)
            collate, size = Collate.of(job.backbone), self.config.schedule.eval_batch_size
            found = predict(teacher, rows, collate=collate, batch_size=size)
            self._answers = found["logits"]
        super().train()

    def rows(self, part: str, *, training: bool = False) -> Rows:
        """As of any job; in training with the teacher's answers, or with what it is to be asked."""
        rows = super().rows(part, training=training)
        if not training:
            return rows
        if self._reads is None:
            rows.ahead = {**rows.ahead, "teacher": self._answers}
        else:
            rows.inputs = _Shared(
                self.cohort,
                self.backbone,
                augment=self.config.input.augment,
                seed=self.config.seed,
                asked=self._reads,
            )
        return rows

    def _teacher(self) -> tuple[classify.Job, nn.Module]:
        named = self.config.distill.teacher
        teacher = self._trained() if named is None else Run.open(Path(named))
        if named is not None:
            self._check(teacher)
        module = registry.load("galenic.tasks", teacher.provenance["task"])
        job, objective = module.load(teacher)
        return job, _Voting(objective) if isinstance(objective.head, NeighbourHead) else objective

    def _trained(self) -> Run:
        """A probe of the builtin network, on the same data, split and seed."""
        recipe, own = open_recipe(TEACHER), self.config
        given = own.model_dump(
            include={"data", "columns", "split", "seed", "shuffle_labels", "quick"}
        )
        config = parse(classify.Config, {**recipe.config, **given, "cache": own.cache})
        path = self.run.path / "teacher"
        if not path.exists():
            tell("The teacher is trained first.")
        return classified(path, config, recipe=TEACHER)

    def _check(self, teacher: Run) -> None:
        """Refuse a teacher of other classes, of true labels in a control, or that saw the test."""
        scores, own = teacher.read_json("metrics.json"), list(self.label.classes)
        theirs = list(scores["classes"])
        if (scores["kind"], theirs) != (self.label.kind, own):
            raise ConfigError(
                f"The teacher has other classes: {_differ(theirs, own)}.",
                where="distill.teacher",
                expected=f"a {self.label.kind} label of {', '.join(own)}, in this order",
            )
        if self.config.shuffle_labels and not teacher.config.get("shuffle_labels"):
            raise ConfigError(
                "The teacher learnt the true labels: a control that it teaches is none.",
                where="shuffle_labels",
                next_step="Take a teacher with shuffle_labels=true, or distill.teacher=null",
            )
        theirs_data = teacher.provenance["data"].get("fingerprint")
        if theirs_data == self.cohort.fingerprint:
            split = teacher.read_json("splits.json")
            seen = np.intersect1d(split["train"] + split["val"], self.splits.test)
            if len(seen):
                raise DataError(
                    f"The teacher was trained on {len(seen)} samples of the test part.",
                    where="distill.teacher",
                    expected="a teacher of the same split",
                    next_step=f"seed={teacher.config['seed']}, and the same split.*",
                )


class _Shared(Inputs):
    """What a student reads, and what its teacher does of the same sample, changed by the same draw.

    Args:
        cohort: The samples.
        backbone: The student.
        asked: What the teacher reads.
        **options: Of :class:`Inputs`.
    """

    def __init__(
        self, cohort: Cohort, backbone: Backbone, *, asked: Inputs, **options: Any
    ) -> None:
        super().__init__(cohort, backbone, **options)
        self.asked = asked

    def __getitem__(self, row: int) -> Example:
        value = self.cohort.read(row)[self.column]
        drawn = self.draw(value, row)
        own, theirs = self.way(row), self.asked.way(row)
        return {
            self.spec.key: own.apply(value, drawn),
            SEEN + self.asked.spec.key: theirs.apply(value, own.carried(drawn, value, theirs)),
        }


class _Voting(nn.Module):
    """A teacher whose head counts votes, and tells them as logits."""

    def __init__(self, teacher: Classifier) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Its `logits`."""
        votes = self.teacher(**inputs)["logits"]
        told = logits_of(self.teacher.kind, votes.float().cpu().numpy())
        return {"logits": torch.from_numpy(told).to(votes)}


def _open_network(spec: str, **options: Any) -> Backbone:
    """The backbone with a distillation token, pooled by its class token."""
    plain = open_backbone(spec, **options)
    network = with_token(plain.network)
    return Backbone(Opened(network, plain.inputs, pool="cls", prefix_tokens=2), spec, "cls")


# Opens a student, and what it reads.
open_student: Opener = partial(open_inputs, open_network=_open_network)


def _two_heads(job: classify.Job) -> nn.Module:
    return TwoHeads(job.backbone.width, job.label.outputs, job.config.head.dropout)


def _differ(theirs: list[str], own: list[str]) -> str:
    """What two lists of classes do not share, or that their order does."""
    parts = [
        f"{words} {', '.join(names)}"
        for words, names in (
            ("it lacks", [name for name in own if name not in theirs]),
            ("it also has", [name for name in theirs if name not in own]),
        )
        if names
    ]
    return " and ".join(parts) or f"their order or kind is another, {', '.join(theirs)}"
