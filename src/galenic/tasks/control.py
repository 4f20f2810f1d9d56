"""Steer a twin of a patient towards wished counts, and say how well it went on the twin itself.

"Control of Medical Digital Twins with Artificial Neural Networks", arXiv 2403.13851.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import Field
from safetensors.torch import load_file, save

from galenic.core.config import Config as BaseConfig
from galenic.core.config import parse
from galenic.core.meters import Meter
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.simulation.controllers import Policy
from galenic.simulation.metamodel import Family
from galenic.simulation.twin import Twin
from galenic.tasks._control_job import Job
from galenic.tasks._control_results import write_results

# What a run writes; no cohort is split, and nobody is classified.
FILES = (
    "config.yaml",
    "provenance.json",
    "status.json",
    "log.jsonl",
    "metrics.json",
    "cost.json",
    "control.json",
    "trajectories.parquet",
    "controller.safetensors",
    "metamodel.json",
)
READS_COHORT = False
TABLE = "trajectories.parquet"
_QUICK = {"steps": 30, "budget": 16, "patterns": 4, "runs": 4, "epochs": 2, "held": 8}


class Config(BaseConfig):
    """Everything that `control` can be told; times are in steps of the twin."""

    data: str = Field("twin:wolf_sheep", description="twin:wolf_sheep or twin:metabolic.")
    rules: dict[str, float] = Field({}, description="Of the twin, where not its defaults.")
    patient: str | None = Field(
        None,
        description="Series of one patient (CSV, columns `name [unit]`): the metamodel is fitted to "
        "it before the controller is trained.",
    )
    targets: dict[str, float] = Field(min_length=1, description="Wished counts by state.")
    alive: list[str] = Field([], description="States that must not be empty at the end.")
    limits: dict[str, float] = Field(
        min_length=1,
        description="Largest control by channel; a channel that is not named stays at 0.",
    )
    steps: int = Field(150, ge=2, description="The horizon.")
    late: float = Field(
        0.5, gt=0, le=1, description="Share of the horizon, its end, that is judged."
    )
    control_weight: float = Field(0.01, ge=0, description="Of the mean squared control, in J.")
    penalty: float = Field(1.0, ge=0, description="Added to J where a state in `alive` died out.")
    controller: Literal[
        "neural", "fraction", "open_loop", "constant", "pid", "cma_es", "random", "none"
    ] = Field(
        "neural",
        description="neural, fraction and open_loop are trained by `route`. constant (a grid), pid and "
        "cma_es (of the network) are searched on the twin; random is an untrained network.",
    )
    route: Literal["metamodel", "straight_through"] = Field(
        "straight_through",
        description="metamodel: gradients through the fitted equations alone. straight_through: then "
        "also through the twin itself.",
    )
    family: Family = Field("mechanistic", description="Equations of the metamodel.")
    budget: int = Field(
        320, ge=4, lt=1_000_000, description="Runs of the twin that fitting may take in all."
    )
    patterns: int = Field(20, ge=2, description="Controls that the metamodel is fitted on.")
    runs: int = Field(8, ge=1, description="Runs of the twin a trial, or a step on the twin.")
    epochs: int = Field(150, ge=1, description="Steps of Adam through the metamodel.")
    lr: float = Field(0.02, gt=0, description="Of Adam there; a quarter of it on the twin.")
    hidden: list[Annotated[int, Field(ge=1)]] = Field(
        [16, 16], description="Widths of the network."
    )
    held: int = Field(200, ge=2, lt=1_000_000, description="Held-out runs that are judged.")
    resamples: int = Field(2000, ge=0, description="Bootstrap draws of held-out runs.")
    seed: int = Field(0, ge=0)
    quick: bool = Field(False, description="A few runs and steps, to see that it works.")


def run(config: Config, run: Run) -> None:
    """Fit, train or search, then judge on held-out seeds; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    started = time.perf_counter()
    seed_everything(config.seed)
    with Meter() as meter:
        job = Job(_quickened(config), run)
        job.fit()
        fitted = time.perf_counter() - started
        write_results(job)
        run.write_bytes("controller.safetensors", save(job.policy.state_dict()))
    run.write_json("cost.json", _cost(job, fitted, time.perf_counter() - started, meter))


def load(run: Run) -> tuple[Twin, Policy]:
    """The twin of a finished run, and its controller."""
    job = Job(_quickened(parse(Config, run.config)), run)
    job.policy.load_state_dict(load_file(run.path / "controller.safetensors"))
    return job.twin, job.policy


def _quickened(config: Config) -> Config:
    return config.model_copy(update=_QUICK) if config.quick else config


def _cost(job: Job, fitted: float, seconds: float, meter: Meter) -> dict[str, Any]:
    trainable = sum(p.numel() for p in job.policy.parameters())
    return {
        "seconds": seconds,
        "fit_seconds": fitted,
        "feature_seconds": 0.0,
        "peak_memory_mb": meter.peak_memory_mb,
        "trainable": trainable,
        "total": trainable,
        "trainable_share": 1.0,
        "steps": len(job.history),
        "model_calls": job.calls,
    }
