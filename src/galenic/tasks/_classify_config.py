"""Everything that the task `classify` can be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.schedule import Schedule
from galenic.data.splits import SplitConfig
from galenic.evaluation.protocol import ScoreConfig
from galenic.models.backbone import Pool
from galenic.pipeline.config import Columns, InputConfig
from galenic.tasks._heads import HeadConfig


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
        False, description="Control: train on labels that were shuffled between samples."
    )
    quick: bool = Field(False, description="A few samples and steps, to see that it runs.")

    @field_validator("tuner")
    @classmethod
    def _known_tuner(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "method" not in value:
            raise ValueError("needs the key 'method'")
        return value
