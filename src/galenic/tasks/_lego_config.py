"""Everything that the task `lego` can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.schedule import Schedule
from galenic.models.lego.functional import HeadMethod, MergeMethod
from galenic.models.lego.fuse import Freeze
from galenic.pipeline.config import InputConfig
from galenic.tasks import classify
from galenic.tasks._heads import HeadConfig

ARMS = ("merged", "fused", "best", "late", "concat")
# What a head's config says of the loss; the rest is of a head that no block has.
OF_THE_LOSS = {"loss", "label_smoothing", "pos_weight", "unlabelled_weight"}


def _flat(value: Schedule) -> Schedule:
    if value.layer_decay != 1.0:
        raise ValueError("layer_decay is of the layers of one network, and here are several")
    return value


FlatSchedule = Annotated[Schedule, AfterValidator(_flat)]


class BlockConfig(BaseConfig):
    """Of every LegoBlock."""

    latent: tuple[int, int] = Field((64, 64), description="Latents (l_c) and their width (l_d).")
    depth: int = Field(2, ge=1, description="Layers.")
    heads: int = Field(8, ge=1)
    head_width: int = Field(64, ge=1)
    frequency_domain: bool = Field(True, description="false: ablation, latents as they are.")
    track_imaginary: bool = Field(True, description="Keep the imaginary part between layers.")
    normalise: bool = Field(True, description="Latents to norm one before each layer.")
    weight_sharing: bool = Field(False, description="One layer for all of `depth`.")
    dropout: float = Field(0.0, ge=0, lt=1)


class MergeConfig(BaseConfig):
    """How trained blocks become one model."""

    latents: MergeMethod = "harmonic"
    head: HeadMethod = "slerp"
    weights: dict[str, float] | None = Field(None, description="By input; None: equal.")


class FuseConfig(BaseConfig):
    """Training of the merged model on samples that have several inputs."""

    mode: Literal["none", "stack", "weave"] = "none"
    order: list[str] | None = Field(None, description="Of the inputs; None: as they come.")
    freeze: Freeze = Field("none", description="none, encoder, or all but head and woven latent.")
    paired: float = Field(1.0, gt=0, le=1, description="Share of the paired samples that is used.")
    schedule: FlatSchedule = Schedule(epochs=2, lr=1e-4, weight_decay=0.01, batch_size=32)


class Config(classify.Config):
    """Everything that `lego` can be told."""

    backbones: dict[str, str] = Field({}, description="Network by input; others: `backbone`.")
    inputs: dict[str, InputConfig] = Field({}, description="Sizes by input; others: `input`.")
    tables: dict[str, list[str]] = Field(
        {}, description="Columns that are an input of their own: {labs: [sodium, urea]}."
    )
    tuner: dict[str, Any] = Field(
        {"method": "none"}, description="Of every encoder: none (frozen), full, lora, ..."
    )
    schedule: FlatSchedule = Schedule()
    block: BlockConfig = BlockConfig()
    merge: MergeConfig = MergeConfig()
    fuse: FuseConfig = FuseConfig()
    trained: str | dict[str, str] = Field(
        {},
        description="The run that trained the blocks, or by input the run that trained its own: used "
        "as they are.",
    )
    predict: str = Field(
        "auto",
        description="Whose predictions are the run's: merged, fused, late, concat, an input, or best "
        "(the input that is best on validation); auto: fused where there is a fusion, else merged.",
    )

    @field_validator("head")
    @classmethod
    def _own_head(cls, value: HeadConfig) -> HeadConfig:
        other = [
            name
            for name, default in HeadConfig()
            if name not in OF_THE_LOSS and getattr(value, name) != default
        ]
        if other:
            raise ValueError(f"a LegoBlock has a head of its own, without {', '.join(other)}")
        return value

    def trained_by(self, name: str) -> Path | None:
        """The run that trained the block of an input; None: this one does."""
        found = self.trained if isinstance(self.trained, str) else self.trained.get(name)
        return None if found is None else Path(found)

    @model_validator(mode="after")
    def _fuses(self) -> Config:
        if self.predict == "fused" and self.fuse.mode == "none":
            raise ValueError("predict=fused needs a fusion: fuse.mode=stack or fuse.mode=weave")
        if self.merge.head == "ot" and self.fuse.mode != "none":
            raise ValueError(
                "merge.head=ot reorders the channels of each block, and a fusion hands them from "
                "block to block: merge.head=slerp or linear with it"
            )
        return self
