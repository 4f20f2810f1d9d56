"""Everything that the task `detect` can be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.schedule import Schedule
from galenic.data.prevalence import PrevalenceConfig
from galenic.data.splits import SplitConfig
from galenic.evaluation.patients import PatientRule
from galenic.objectives.detection import BoxLoss
from galenic.pipeline.config import Columns, InputConfig


class DetectorConfig(BaseConfig):
    """What finds the boxes."""

    kind: str = Field(
        "fcos",
        description="fcos: an anchor-free head on `backbone`. Else the folder or id of a detection "
        "model of transformers (YOLOS, DETR, RT-DETR, D-FINE), which brings its own network.",
    )
    width: int = Field(96, ge=8, multiple_of=8, description="Channels of the pyramid (fcos).")
    strides: list[int] = Field(
        [8, 16, 32], min_length=1, description="Pixels a place of each level, ascending (fcos)."
    )
    box_loss: BoxLoss = Field("giou", description="Overlap that boxes are trained by (fcos).")
    overlap: float = Field(0.6, gt=0, le=1, description="From which one of two boxes goes.")
    most: int = Field(100, ge=1, description="Detections of an image.")
    least_score: float = Field(0.05, ge=0, lt=1, description="Below it a detection is left out.")

    @field_validator("strides")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        if min(value) < 1 or value != sorted(set(value)):
            raise ValueError("strides are 1 or more, each larger than the one before")
        return value


class DetectionScore(BaseConfig):
    """How detections are scored."""

    resamples: int = Field(1000, ge=0, description="Bootstrap draws of patients.")
    level: float = Field(0.95, gt=0, lt=1, description="Of every interval.")
    prevalences: list[float] = Field(
        [0.5, 0.1, 0.01], description="Shares of ill patients at which precision is told."
    )


class Config(BaseConfig):
    """Everything that `detect` can be told."""

    data: str
    columns: Columns = Columns()
    split: SplitConfig = SplitConfig()
    prevalence: PrevalenceConfig = PrevalenceConfig()
    backbone: str = Field("auto", description="Below fcos; auto: the builtin network of images.")
    input: InputConfig = InputConfig()
    tuner: dict[str, Any] = Field({"method": "full"}, description="Of the backbone below fcos.")
    detector: DetectorConfig = DetectorConfig()
    rule: PatientRule = PatientRule()
    schedule: Schedule = Schedule(epochs=12, batch_size=8, lr=1e-3)
    score: DetectionScore = DetectionScore()
    seed: int = Field(0, ge=0)
    shuffle_labels: bool = Field(
        False, description="Control: train on boxes that were shuffled between images."
    )
    quick: bool = Field(False, description="A few samples and steps, to see that it runs.")

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if "method" not in self.tuner:
            raise ValueError("tuner needs the key 'method'")
        if self.detector.kind != "fcos" and self.tuner["method"] != "full":
            raise ValueError("a detector of transformers trains as a whole: tuner.method=full")
        if self.detector.kind != "fcos" and self.schedule.layer_decay != 1.0:
            raise ValueError("schedule.layer_decay is for the backbone below detector.kind=fcos")
        augment = self.input.augment
        for name in ("warp", "randaugment"):
            if augment is not None and getattr(augment, name) is not None:
                raise ValueError(f"boxes do not follow input.augment.{name}; turns, flip, crop do")
        return self
