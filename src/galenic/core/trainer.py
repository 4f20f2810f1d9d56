"""The one door to training: :func:`fit` an objective, on `transformers.Trainer`."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from galenic.core import checkpoint
from galenic.core.engine import Engine
from galenic.core.errors import ConfigError, DataError, RunError
from galenic.core.plan import Array, Plan, Validation, processes
from galenic.core.prediction import predict
from galenic.core.progress import bar
from galenic.core.schedule import Schedule

__all__ = ["FitResult", "Schedule", "Validation", "fit", "predict"]

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class FitResult:
    """What a training came to.

    Attributes:
        steps: Optimiser steps in all, those before a resume included.
        seconds: Of this call.
        best: Best validation figure, None without validation.
        history: Every event of this call.
    """

    steps: int
    seconds: float
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(
    objective: nn.Module,
    train: Dataset[Any],
    *,
    schedule: Schedule,
    collate: Callable[[list[Any]], dict[str, Tensor]],
    folder: Path,
    seed: int,
    validation: Validation | None = None,
    sample_weights: Array | None = None,
    sample_groups: Array | None = None,
    depths: Mapping[str, int] | None = None,
    rates: Mapping[str, float] | None = None,
    after_step: Callable[[int, int], None] | None = None,
    log: Log | None = None,
    resume: bool = False,
) -> FitResult:
    """Train the parameters of `objective` that require gradients, in place.

    Under `torchrun` or `accelerate launch` every process calls this; only the first one writes
    and logs.

    Args:
        objective: `forward(**batch)` returns a dict with the scalar `loss`.
        train: Indexable samples; `set_epoch` is called where there is one, and an array
            `lengths`, where there is one, puts samples of like size into a batch.
        schedule: Rates, lengths, precision.
        collate: Samples to a batch of tensors.
        folder: Checkpoints go here.
        seed: Of order and dropout.
        validation: With it, training ends on the best epoch (`schedule.keep_best`) and may
            stop early (`schedule.patience`).
        sample_weights: Relative chance of each sample, for balanced drawing.
        sample_groups: Group of each sample; every batch holds all groups in equal share.
        depths: Depth of each parameter by name, for `schedule.layer_decay`.
        rates: Factor of the rate of some parameters by name.
        after_step: Called with (steps done, steps in all) after every optimiser step.
        log: Receives every event.
        resume: Go on from the last whole checkpoint in `folder`, to the same end, bit for bit;
            from the start where there is none.

    Raises:
        GalenicError: If the loss is no longer finite; says at which step and where.
        ConfigError: If nothing trains, or a resume finds another schedule than it left.
        DataError: If there are no samples, or no weight or group a sample.
        RunError: If `folder` holds checkpoints that nobody asked to resume.
        WeightsError: If all checkpoints are damaged; names the tensor.
    """
    started = time.perf_counter()
    plan = Plan(
        train, collate, schedule, seed, validation, sample_weights, sample_groups, depths,
        rates, after_step,
    )  # fmt: skip
    _check(plan, folder, resume)
    history: list[dict[str, Any]] = []
    writes = os.environ.get("RANK", "0") == "0"

    def record(event: dict[str, Any]) -> None:
        history.append(event)
        if log is not None and writes:
            log(event)

    last = checkpoint.newest_whole(folder, record) if resume else None
    modes = [(part, part.training) for part in objective.modules()]
    own_forward = "forward" in vars(objective)
    total = plan.steps(processes())
    with _quiet(), _recomputing(objective, schedule), bar("training", total) as update:
        engine = Engine(objective, plan, folder, record, update)
        try:
            if last is None or not engine.take_up(last):
                engine.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            # Mixed precision wraps `forward`; the caller gets the objective without it.
            engine.accelerator.unwrap_model(engine.model_wrapped, keep_fp32_wrapper=False)
            vars(objective).pop("zero_grad", None)
            if not own_forward:
                vars(objective).pop("forward", None)
            engine.accelerator.free_memory()
            for part, training in modes:
                part.training = training
    if engine.best is not None and schedule.keep_best:
        engine.moving.put(engine.best)
    objective.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    return FitResult(engine.state.global_step, seconds, engine.best_figure, history)


def _check(plan: Plan, folder: Path, resume: bool) -> None:
    if len(plan.train) == 0:  # type: ignore[arg-type]
        raise DataError("There are no samples to train on.", expected="at least one sample")
    if checkpoint.checkpoints(folder) and not resume:
        raise RunError(
            f"The folder '{folder.name}' holds the checkpoints of another training.",
            where=str(folder),
            next_step="Resume it, or choose another folder.",
        )
    if plan.schedule.patience and plan.validation is None:
        raise ConfigError(
            "schedule.patience needs a validation to judge an epoch by; there is none.",
            next_step="Keep some samples for validation, or leave schedule.patience out.",
        )


@contextmanager
def _recomputing(objective: nn.Module, schedule: Schedule) -> Iterator[None]:
    """Gradient checkpointing inside, and what it was before afterwards."""
    if not schedule.gradient_checkpointing:
        yield
        return
    enable: Any = getattr(objective, "gradient_checkpointing_enable", None)
    if enable is None:
        raise ConfigError(
            f"{type(objective).__name__} cannot recompute its activations.",
            where="schedule.gradient_checkpointing",
            next_step="schedule.gradient_checkpointing=false",
        )
    flag = "gradient_checkpointing"
    before = [(m, getattr(m, flag)) for m in objective.modules() if hasattr(m, flag)]
    enable()
    try:
        yield
    finally:
        for part, value in before:
            setattr(part, flag, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the engine's advice to itself; what matters goes to the log."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            for noisy in ("transformers", "accelerate", "torch"):
                warnings.filterwarnings("ignore", module=rf"{noisy}(\.|$)")
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)
