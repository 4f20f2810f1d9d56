"""Everything that the task `segment` can be told."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.schedule import Schedule
from galenic.data.splits import SplitConfig
from galenic.pipeline.config import Columns, InputConfig


class DecoderConfig(BaseConfig):
    """What turns feature maps into a class a pixel."""

    kind: Literal["linear", "unet"] = Field(
        "linear", description="linear: one layer on the last map; unet: stages that take in others."
    )
    levels: int = Field(5, ge=2, description="Feature maps that are used (unet).")
    width: int | None = Field(
        None, ge=2, description="Channels before the first stage (unet); None: of the last map."
    )


class MaskLoss(BaseConfig):
    """Weights of the terms of the loss."""

    dice: float = Field(1.0, ge=0)
    cross_entropy: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> MaskLoss:
        if not self.dice + self.cross_entropy:
            raise ValueError("one of dice and cross_entropy must be above 0")
        return self


class MaskScore(BaseConfig):
    """How masks are scored."""

    resamples: int = Field(2000, ge=0, description="Bootstrap draws of patients.")
    level: float = Field(0.95, gt=0, lt=1, description="Of every interval.")


class Config(BaseConfig):
    """Everything that `segment` can be told."""

    data: str
    columns: Columns = Columns()
    split: SplitConfig = SplitConfig()
    backbone: str = Field("auto", description="auto: the builtin network of the modality.")
    input: InputConfig = InputConfig()
    tuner: dict[str, Any] = Field({"method": "none"}, description="method and its own keys.")
    structures: list[str] = Field(
        [], description="Names of the values in the masks, background left out; []: the values."
    )
    threshold: float | None = Field(
        None, description="Of masks in greys: from here on a pixel is the one structure."
    )
    decoder: DecoderConfig = DecoderConfig()
    loss: MaskLoss = MaskLoss()
    schedule: Schedule = Schedule(epochs=30, batch_size=8, lr=1e-3)
    score: MaskScore = MaskScore()
    cache: str | None = Field(None, description="Folder of frozen outputs; None keeps none.")
    seed: int = Field(0, ge=0)
    shuffle_labels: bool = Field(
        False, description="Control: train on masks that were shuffled between samples."
    )
    quick: bool = Field(False, description="A few samples and steps, to see that it runs.")

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if "method" not in self.tuner:
            raise ValueError("tuner needs the key 'method'")
        augment = self.input.augment
        if augment is not None and augment.randaugment is not None:
            raise ValueError(
                "masks do not follow input.augment.randaugment; crop, warp, turns, flip do"
            )
        return self
