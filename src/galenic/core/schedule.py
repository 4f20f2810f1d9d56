"""How long, how fast, on what precision: the numbers of a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from galenic.core.config import Config


class Schedule(Config):
    """Of AdamW with a linear warm-up, then a decay."""

    epochs: float = Field(10, gt=0, description="Passes over the training samples.")
    max_steps: int | None = Field(
        None, ge=1, description="Optimiser steps at most, if `epochs` has more."
    )
    batch_size: int = Field(32, ge=1, description="Samples a step and device.")
    eval_batch_size: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1, description="Batches summed before a step.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    decay: Literal["cosine", "linear"] = Field("cosine", description="From `lr` to `min_lr`.")
    min_lr: float = Field(0.0, ge=0, description="Where the decay ends.")
    warmup: float = Field(0.1, ge=0, description="Share of the steps if below 1, else steps.")
    weight_decay: float = Field(0.05, ge=0, description="Not on biases, norms or scales.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Memory of AdamW's second moment.")
    layer_decay: float = Field(1.0, gt=0, le=1, description="Rate factor a layer downwards.")
    clip_norm: float | None = Field(1.0, gt=0, description="Largest gradient norm.")
    balance: bool | Literal["site"] = Field(
        False, description="true: draw every class equally often; site: every site."
    )
    patience: int | None = Field(None, ge=1, description="Epochs without a better validation.")
    keep_best: bool = Field(True, description="End on the best epoch, not on the last.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32."
    )
    gradient_checkpointing: bool = False
    workers: int = Field(0, ge=0, description="Processes that load samples.")
    checkpoint_steps: int | None = Field(None, ge=1, description="None: after each epoch.")

    def epoch(self, samples: int, processes: int = 1) -> int:
        """Optimiser steps of an epoch."""
        batches = -(-samples // (self.batch_size * processes))
        return -(-batches // self.accumulate)


def _plain(value: Schedule) -> Schedule:
    if value.layer_decay != 1.0 or value.balance:
        raise ValueError(
            "layer_decay and balance belong to tuning a network to the labels of a cohort"
        )
    return value


# Where no backbone is tuned to labels: what belongs to that is refused, not ignored.
PlainSchedule = Annotated[Schedule, AfterValidator(_plain)]
