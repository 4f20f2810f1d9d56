"""Everything that the task `forecast` can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from galenic.core.config import Config as BaseConfig
from galenic.core.schedule import PlainSchedule, Schedule
from galenic.data.events.definitions import Definition
from galenic.data.events.vocabulary import TokenConfig
from galenic.data.splits import SplitConfig
from galenic.evaluation.protocol import ScoreConfig
from galenic.models.mamba.build import Sizes

# Linear from 1 % of the rate up, and down to it again (EHRMamba, 2024).
_PACE = {"lr": 5e-5, "min_lr": 5e-7, "warmup": 0.1, "decay": "linear", "weight_decay": 0.01}


class Config(BaseConfig):
    """Everything that `forecast` can be told."""

    data: str = Field(description="Events: FHIR, MEDS or tables, or a folder of these.")
    mapping: str | None = Field(None, description="Of tables: omop, mimic3, ..., or a YAML file.")
    timezone: str = Field("UTC", description="Where clocks without a zone hang.")
    tasks: list[str | Definition] = Field(
        ["length_of_stay", "hospital_mortality"],
        min_length=1,
        description="Names of definitions that come with galenic, YAML files, or what stands in them.",
    )
    how: Literal["multitask", "single"] = Field(
        "multitask", description="multitask: all tasks in one phase; single: a network a task."
    )
    network: Literal["mamba", "transformer", "bag"] = Field(
        "mamba",
        description="transformer: a causal one of as many parameters. bag: logistic regression on "
        "counts of tokens.",
    )
    sizes: Sizes = Sizes()
    start: str | None = Field(None, description="Folder of a MambaForCausalLM to go on from.")
    tokens: TokenConfig = TokenConfig()
    length: int = Field(2048, ge=16, description="Most tokens of a history; the recent ones stay.")
    split: SplitConfig = SplitConfig()
    pretrain: bool = Field(True, description="Train on the next token before the tasks.")
    pretraining: PlainSchedule = Field(
        Schedule(epochs=20, **_PACE), description="On the next token."
    )
    schedule: PlainSchedule = Field(
        Schedule(epochs=6, patience=2, **_PACE), description="On the tasks."
    )
    positive_rate: float | None = Field(
        None, gt=0, lt=1, description="Negatives of a task are left out down to this rate."
    )
    score: ScoreConfig = ScoreConfig()
    seed: int = Field(0, ge=0)
    shuffle_labels: bool = Field(
        False, description="Control: train on labels that were shuffled between samples."
    )
    quick: bool = Field(False, description="A small network and a few steps, to see that it runs.")
