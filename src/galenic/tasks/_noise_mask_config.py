"""Everything that the task `noise_mask` can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.schedule import Schedule
from galenic.objectives.noise_mask import Baseline, Estimator
from galenic.tasks import _classify_config


class NoiseConfig(BaseConfig):
    """The mask and what draws it."""

    policy: Literal["learned", "untrained", "uniform", "none"] = Field(
        "learned",
        description="untrained: a network that never learns; uniform: Beta(1, 1) everywhere; "
        "none: no mask (controls).",
    )
    policy_backbone: str = Field(
        "builtin:resnet10", description="Any network of pictures; its weights are drawn anew."
    )
    grid: int = Field(64, ge=2, description="Cells of a side.")
    kernel: int = Field(13, ge=1, description="Pixels of the blur, odd.")
    sigma: float = Field(6.0, gt=0, description="Of the blur, in pixels.")
    decay: float = Field(0.9, ge=0, lt=1, description="Share of the running base in a policy.")
    base_momentum: float = Field(0.99, ge=0, lt=1, description="Share of it that a step keeps.")
    objective: Estimator = Field(
        "reinforce", description="logsumexp: the loss of the authors' code, to compare with it."
    )
    baseline: Baseline = Field("batch", description="Subtracted from a reward (reinforce).")
    entropy: float = Field(0.0, ge=0, description="Weight of the entropy a cell (reinforce).")
    policy_lr_ratio: float = Field(0.1, gt=0, le=1, description="Of the classifier's rate.")


class Config(_classify_config.Config):
    """Everything that `noise_mask` can be told; `schedule` is that under noise."""

    noise: NoiseConfig = NoiseConfig()
    finetune: Schedule | None = Field(
        Schedule(epochs=10, lr=1e-4, warmup=0.7),
        description="Plain training behind it; None ends with the heated network.",
    )
    average_last: int = Field(
        3, ge=0, description="Epochs of `finetune` averaged at its end; 0: what the schedule keeps."
    )

    @model_validator(mode="after")
    def _ends_on_the_average(self) -> Config:
        if self.finetune is not None and self.finetune.patience and self.average_last:
            raise ValueError(
                "finetune.patience may stop before the last epochs, which average_last averages: "
                "set average_last=0 with it"
            )
        return self
