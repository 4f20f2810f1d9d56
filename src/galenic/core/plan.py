"""What a training is made of, before it starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments

from galenic.core import hardware
from galenic.core.schedule import Schedule

Array = np.ndarray[Any, np.dtype[Any]]
# What may change between a run and its resume without changing a single weight.
FREE = {"workers", "eval_batch_size", "checkpoint_steps", "keep_best"}


def processes() -> int:
    """How many train together, as their launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Validation:
    """How an epoch is judged.

    Attributes:
        data: Samples that training never sees.
        score: From all outputs of :func:`predict` to figures; the first one decides.
        greater_is_better: Of the first figure.
    """

    data: Dataset[Any]
    score: Callable[[dict[str, Array]], dict[str, float]]
    greater_is_better: bool = True


@dataclass(frozen=True)
class Plan:
    """All that decides which weights come out.

    Attributes:
        train: Indexable samples.
        collate: Samples to a batch.
        schedule: Rates, lengths, precision.
        seed: Of order and dropout.
        validation: How an epoch is judged, or None.
        sample_weights: Relative chance of each sample, or None.
        sample_groups: Group of each sample, where batches hold all groups alike, or None.
        depths: Depth of each parameter by name, or None.
        rates: Factor of the rate of some parameters by name, or None.
        after_step: Called with (steps done, steps in all) after every optimiser step.
    """

    train: Dataset[Any]
    collate: Callable[[list[Any]], dict[str, Tensor]]
    schedule: Schedule
    seed: int
    validation: Validation | None = None
    sample_weights: Array | None = None
    sample_groups: Array | None = None
    depths: Mapping[str, int] | None = None
    rates: Mapping[str, float] | None = None
    after_step: Callable[[int, int], None] | None = None

    def steps(self, world: int) -> int:
        """Optimiser steps in all."""
        epoch = self.schedule.epoch(len(self.train), world)  # type: ignore[arg-type]
        steps = math.ceil(self.schedule.epochs * epoch)
        return min(steps, self.schedule.max_steps or steps)

    def meaning(self, world: int) -> dict[str, Any]:
        """What a resume must find unchanged."""
        values = self.schedule.model_dump(mode="json", exclude=FREE)
        samples = len(self.train)  # type: ignore[arg-type]
        return {**values, "seed": self.seed, "samples": samples, "processes": world}


def arguments(plan: Plan, folder: Path) -> TrainingArguments:
    """`plan` in the words of `transformers.Trainer`, with all its own habits off."""
    device, schedule = hardware.device(), plan.schedule
    precision = hardware.precision(schedule.precision, device)
    found = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulate,
        max_grad_norm=schedule.clip_norm or 0.0,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device.type == "cpu",
        seed=plan.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        average_tokens_across_devices=False,
    )
    found.max_steps = plan.steps(found.world_size)
    # Several GPUs without a launcher: one is used, rather than torch's old DataParallel.
    found._n_gpu = min(found.n_gpu, 1)
    return found
