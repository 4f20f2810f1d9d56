"""A patch ported to a base that went on reading: what it recovers of training anew.

"PortLLM", ICLR 2025, arXiv 2410.10870.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.run import Run
from galenic.core.schedule import Schedule
from galenic.merging.patches import Gate
from galenic.objectives.classification import Classifier
from galenic.pipeline.config import Columns
from galenic.tasks import classify
from galenic.tasks._heads import HeadConfig
from galenic.tasks._job import carry_out, reopened
from galenic.tasks._port_arms import Arm, Arms
from galenic.tasks._words import WordsConfig


class EvolveConfig(WordsConfig):
    """How the provider's new base comes about: masked-language training on more text."""

    data: str | None = Field(
        None, description="Manifest of the text, or sample:NAME; None: the training part's own."
    )
    column: str | None = Field(None, description="Its column; None for a guess.")
    tuner: dict[str, Any] | None = Field(
        None,
        description="What of the base its reading trains; None for all. With composable_sft here and "
        "as the tuner, the ported arm is a sum of two sparse skills.",
    )
    schedule: Schedule = Schedule(epochs=1, lr=5e-5, weight_decay=0.01, batch_size=32)


class OtherConfig(BaseConfig):
    """Another task, whose patch must not help."""

    data: str
    columns: Columns = Columns()


class Config(classify.Config):
    """Everything that `port` can be told."""

    tuner: dict[str, Any] = Field(
        {"method": "lora"},
        description="What makes the patch: a plain LoRA, composable_sft, or full for the difference "
        "of all weights.",
    )
    evolve: EvolveConfig = EvolveConfig()
    predict: Arm = Field(
        "ported",
        description="Whose predictions are the run's. old: a head on the old base. old_patched: that "
        "base with its patch. new: the new base with the head of old. ported: the new base with the "
        "old patch and its head. retrained: patch and head trained on the new base. new_head: a head "
        "alone trained there. random_patch, other_patch: controls in place of the ported one.",
    )
    also: list[Arm] = Field(
        ["old", "old_patched", "new", "retrained"],
        description="Arms that are scored beside it, for recovery.json; [] saves their time, "
        "and `quick` does.",
    )
    other: OtherConfig | None = Field(None, description="Of other_patch.")
    probe: int = Field(
        64,
        ge=0,
        description="Texts of the validation rows, labels unseen, on which the drift of the "
        "activations is measured for portability.json; 0 measures none.",
    )
    gate: Gate = Field(
        Gate(),
        description="What the arm ported must keep to, for `accepted` in portability.json. min_gain "
        "is asked of the main metric on validation rows, over the arm new; both arms are then scored.",
    )

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.gate.min_cosine is not None and not self.probe:
            raise ValueError("gate.min_cosine needs text: probe=64")
        return self

    @field_validator("head")
    @classmethod
    def _linear(cls, value: HeadConfig) -> HeadConfig:
        if value.kind != "linear":
            raise ValueError("a patch is trained with a linear head")
        return value


class PortJob(classify.Job):
    """The job of the run's own arm, which reports on all of them.

    Attributes:
        arms: Where the others are; set by :func:`make`.
    """

    arms: Arms

    def evaluate(self) -> None:
        """Predict, score, and set the arm between the others."""
        super().evaluate()
        self.arms.report(self)


def run(config: Config, run: Run) -> None:
    """Train the patch on the old base, make the new one, port, predict and score.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, make)


def load(run: Run) -> tuple[classify.Job, Classifier]:
    """The fitted objective of a finished run, and the job that knows its data."""
    return classify.restored(reopened(run, Config, make))


def make(config: Config, run: Run) -> PortJob:
    """The job of the arm that `config.predict` names."""
    if config.quick:
        config = config.model_copy(update={"also": []})
    arms = Arms(config, run)
    job = arms.job(config.predict, run, PortJob)
    assert isinstance(job, PortJob)
    job.arms = arms
    return job
