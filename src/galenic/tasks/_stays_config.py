"""Everything that the task `stays` can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.data.events.definitions import Definition
from galenic.models.irregular.fusion import FusionMethod
from galenic.models.irregular.utde import GateLevel
from galenic.tasks import classify
from galenic.tasks._heads import HeadConfig

Modality = Literal["series", "panel", "notes"]


class SeriesConfig(BaseConfig):
    """What is read of the events before a cutoff."""

    window_hours: float = Field(48.0, gt=0, description="Of the window that ends at the cutoff.")
    steps: int | None = Field(
        None, ge=1, description="Regular times of the window; None: one an hour."
    )
    channels: list[str] = Field(
        [],
        description="Codes that are read; []: each laboratory value and vital sign that enough "
        "training stays have.",
    )
    least: float = Field(
        0.05, ge=0, le=1, description="Share of the training stays that is enough."
    )
    levels: dict[str, list[str]] = Field(
        {}, description="Order of the answers of a coded channel; others are sorted."
    )
    panel: list[str] = Field(
        [], description="Channels with a clock of their own: the modality `panel`."
    )
    notes: int = Field(5, ge=1, description="The last notes that are read.")
    keep: float = Field(
        1.0, gt=0, le=1, description="Share of the measurements that is kept, drawn at random."
    )


class NetworkConfig(BaseConfig):
    """What reads them; the paper's sizes."""

    kind: Literal["irregular", "gru", "trees"] = Field(
        "irregular",
        description="Baselines read `series` alone. gru: a GRU over the series carried forward. "
        "trees: gradient boosting on last, mean, lowest, highest and count.",
    )
    gate: GateLevel = Field(
        "batch_seq_feature",
        description="One gate a stay, a time, or a time and feature; mtand and imputation are one "
        "branch alone.",
    )
    fusion: FusionMethod = Field("interleaved", description="Of two modalities.")
    width: int = Field(128, ge=1)
    time_width: int = Field(64, ge=2, description="Of the embedding of times.")
    layers: int = Field(3, ge=1, description="Of the fusion.")
    heads: int = Field(8, ge=1, description="Divides `width` and `time_width`.")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _divisible(self) -> NetworkConfig:
        if self.width % self.heads or self.time_width % self.heads:
            raise ValueError(
                f"heads is {self.heads}, which does not divide width {self.width} and "
                f"time_width {self.time_width}"
            )
        return self


class Config(classify.Config):
    """Everything that `stays` can be told; `backbone` and `tuner` are of the text network."""

    data: str = Field(description="The events: FHIR, MEDS, or tables with a `mapping`.")
    mapping: str | None = Field(
        None, description="Of tables to events: a preset (omop, mimic3, ...) or a YAML file."
    )
    timezone: str = Field("UTC", description="Where clocks without a zone hang.")
    stays: str | None = Field(
        None,
        description="Manifest with the columns patient_id, cutoff and labels; None: `definition` "
        "makes it.",
    )
    definition: str | Definition = Field(
        "hospital_mortality",
        description="Gives cutoffs and labels: a name of those that come with galenic, a YAML file, "
        "or what stands in it.",
    )
    modalities: list[Modality] = Field(["series"], min_length=1, max_length=2)
    series: SeriesConfig = SeriesConfig()
    network: NetworkConfig = NetworkConfig()

    @field_validator("head")
    @classmethod
    def _own_head(cls, value: HeadConfig) -> HeadConfig:
        if value.kind != "linear" or value.grow_from is not None:
            raise ValueError("a network of stays has a head of its own")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities names '{self.modalities[0]}' twice")
        if self.network.kind != "irregular" and self.modalities != ["series"]:
            raise ValueError(f"network.kind={self.network.kind} reads modalities=[series] alone")
        if self.tuner["method"] != "none" and "notes" not in self.modalities:
            raise ValueError("there is no text network to tune: add the modality 'notes'")
        if ("panel" in self.modalities) != bool(self.series.panel):
            raise ValueError("the modality 'panel' and the codes in series.panel go together")
        return self
