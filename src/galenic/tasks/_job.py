"""The life of a job: made, done and measured; and opened again when its run is finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from galenic.core.config import Config, parse
from galenic.core.meters import Meter
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.core.schedule import Schedule
from galenic.core.seeding import seed_everything
from galenic.core.trainer import Validation, fit
from galenic.models.anatomy import anatomy
from galenic.models.anatomy import depths as depths_in
from galenic.pipeline.balance import Balance

if TYPE_CHECKING:
    from galenic.tasks import detect, segment

Array = np.ndarray[Any, np.dtype[Any]]
# The schedule of a run that only shows that it works, and its bootstrap draws.
QUICK = {"epochs": 1, "max_steps": 2, "batch_size": 8, "eval_batch_size": 16}
QUICK_RESAMPLES = 50
# Under so many patients, the best epoch on validation is the luckiest as much as the best.
FEW_JUDGES = 20
C = TypeVar("C", bound=Config)
T = TypeVar("T")


class Steps(Protocol):
    """What a job does, and what of it is measured: parameters that train and all, and seconds."""

    @property
    def parameters(self) -> tuple[int, int]: ...

    fit_seconds: float
    feature_seconds: float
    steps: int

    def train(self) -> None: ...

    def evaluate(self) -> None: ...

    def save(self) -> None: ...


def carry_out(config: Any, run: Run, make: Callable[[Any, Run], Steps]) -> None:
    """Make a job, do all of it, and write `cost.json`.

    Args:
        config: What to do.
        run: Where it goes.
        make: Of both, the job.
    """
    started = time.perf_counter()
    seed_everything(config.seed)
    with Meter() as meter:
        job = make(quickened(config) if config.quick else config, run)
        job.train()
        job.evaluate()
        job.save()
    write_cost(
        run,
        time.perf_counter() - started,
        meter,
        job.parameters,
        fit_seconds=job.fit_seconds,
        feature_seconds=job.feature_seconds,
        steps=job.steps,
        cached=getattr(config, "cache", None) is not None,
    )


def write_cost(
    run: Run,
    seconds: float,
    meter: Meter,
    parameters: tuple[int, int],
    *,
    fit_seconds: float = 0.0,
    feature_seconds: float = 0.0,
    steps: int = 0,
    cached: bool = False,
) -> None:
    """Write `cost.json`.

    Args:
        run: Where.
        seconds: Of all.
        meter: That was open meanwhile.
        parameters: Those that trained, and all.
        fit_seconds: Of training.
        feature_seconds: Of what was computed ahead.
        steps: Of training.
        cached: Whether outputs of the frozen network were kept.
    """
    trainable, total = parameters
    run.write_json(
        "cost.json",
        {
            "seconds": seconds,
            "fit_seconds": fit_seconds,
            "feature_seconds": feature_seconds,
            "peak_memory_mb": meter.peak_memory_mb,
            "trainable": trainable,
            "total": total,
            "trainable_share": trainable / max(total, 1),
            "steps": steps,
            "cached": cached,
        },
    )


def fit_stages(
    job: detect.Job | segment.Job,
    top: nn.Module,
    train: Dataset[Any],
    validation: Validation,
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    drawn: Balance,
    depths: dict[str, int] | None,
) -> None:
    """Fit `job.objective` through the stages of its tuner; time and steps add up on the job.

    Args:
        job: With its objective and hooks.
        top: What stands on the backbone.
        train: What is learnt.
        validation: What it is watched by.
        collate: Samples to a batch.
        drawn: How samples are drawn.
        depths: Of :func:`layer_depths`.
    """
    warn_of_few_judges(job.cohort.patient_ids[job.splits.val], job.config.schedule)
    for stage in job.hooks.begun(top):
        result = fit(
            job.objective,
            train,
            schedule=job.config.schedule.model_copy(update=dict(stage.schedule)),
            collate=collate,
            folder=job.run.path / "checkpoints" / stage.name,
            seed=job.config.seed,
            validation=validation,
            sample_weights=drawn.weights,
            sample_groups=drawn.groups,
            depths=depths,
            after_step=job.hooks.after_step,
            log=job.run.log,
            resume=job.run.resumed,
        )
        job.fit_seconds += result.seconds
        job.steps += result.steps


def warn_of_few_judges(patients: Array, schedule: Schedule) -> None:
    """Say where the epoch that a run ends on is chosen by a handful of `patients`."""
    count = len(np.unique(patients))
    if 0 < count < FEW_JUDGES and schedule.keep_best and schedule.max_steps != QUICK["max_steps"]:
        tell(
            f"Validation holds {count} patient(s): which epoch is best is partly chance. "
            "split.val=0.3 gives it more, schedule.keep_best=false ends on the last epoch."
        )


def layer_depths(
    objective: nn.Module, network: nn.Module, schedule: Schedule
) -> dict[str, int] | None:
    """Depth of every parameter of an objective, for `schedule.layer_decay`; None where it is 1.

    Args:
        objective: With the network in it; what is not the network's is as deep as its end.
        network: Of the backbone.
        schedule: Of the training.
    """
    if schedule.layer_decay == 1.0:
        return None
    inner = depths_in(network)
    found = {id(parameter): inner[name] for name, parameter in network.named_parameters()}
    last = len(anatomy(network).blocks) + 1
    return {name: found.get(id(p), last) for name, p in objective.named_parameters()}


def reopened(run: Run, kind: type[C], make: Callable[[C, Run], T]) -> T:
    """The job of a finished run, as it was before it trained.

    Args:
        run: Whose config is read.
        kind: Of the config.
        make: As for :func:`carry_out`.
    """
    config = parse(kind, run.config)
    # A network with random weights is drawn again, as the run drew it.
    seed_everything(config.seed)  # type: ignore[attr-defined]
    return make(quickened(config) if config.quick else config, run)  # type: ignore[attr-defined]


def quickened(config: C) -> C:
    """A copy that takes two steps of every schedule in it, and scores roughly."""
    short: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Schedule):
            short[name] = value.model_copy(update=QUICK)
        elif isinstance(value, Config):
            short[name] = quickened(value)
        elif name == "resamples":
            short[name] = QUICK_RESAMPLES
    return config.model_copy(update=short)
