"""What a control run writes down: figures of held-out runs with intervals, and their trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from galenic.evaluation.bootstrap import Array, Estimate, estimates
from galenic.simulation.lift import Lift, beyond, evaluate, far_from_target
from galenic.simulation.rollout import on_metamodel

if TYPE_CHECKING:
    from galenic.tasks._control_job import Job

LEVEL = 0.95


def write_results(job: Job) -> None:
    """Judge the controller on held-out seeds of the twin, and write every number."""
    config = job.config
    lift = evaluate(
        job.twin, job.policy, job.objective, job.held, steps=config.steps, seen=job.seen
    )
    figures = _estimates(lift, config.resamples, config.seed)
    figures["model_calls"] = Estimate(job.calls, job.calls, job.calls, LEVEL, 1)
    document: dict[str, Any] = {"main": "control_cost", "kind": "control", "classes": []}
    job.run.write_json("metrics.json", document | {"test": figures})
    job.run.write_json("control.json", _control(job, lift))
    if job.model is None:
        job.run.write_json("metamodel.json", {"family": None, "because": "none was fitted"})
    job.run.write_table("trajectories.parquet", _table(job, lift))
    twin = job.twin
    job.run.update_provenance(
        data={
            "name": twin.name,
            "title": config.data,
            "fingerprint": "",
            "license": "",
            "n": config.held,
            "patients": config.held,
            "kind": "simulated",
        },
        weights={"backbone": f"metamodel:{config.family}" if job.model else "none"},
    )
    job.run.log({"event": "scored", "control_cost": figures["control_cost"].value})


def _estimates(lift: Lift, resamples: int, seed: int) -> dict[str, Estimate]:
    """Means over held-out runs, with the bootstrap over runs."""
    values = np.stack([part.double().numpy() for part in lift.figures.values()], axis=1)
    runs = len(values)

    def metric(counts: Array) -> Array:
        return counts.astype(float) @ values / runs

    found = estimates(metric, np.arange(runs), resamples=resamples, level=LEVEL, seed=seed)
    return dict(zip(lift.figures, found, strict=True))


def _control(job: Job, lift: Lift) -> dict[str, Any]:
    """What the report says beside the figures: gap to the metamodel, targets missed, extrapolation."""
    twin, objective = job.twin, job.objective
    missed = far_from_target(objective, lift.paths).tolist()
    late = objective.end(lift.paths.x).mean((0, 1)).tolist()
    found: dict[str, Any] = {
        "twin": twin.name,
        "dt": twin.dt,
        "time_unit": twin.time_unit,
        "states": {
            state.name: {
                "unit": state.unit,
                "target": job.config.targets.get(state.name),
                "late_mean": mean,
                "missed": far,
            }
            for state, mean, far in zip(twin.states, late, missed, strict=True)
        },
        "controls": {control.name: {"unit": control.unit} for control in twin.controls},
        "history": job.history,
        "metamodel": None,
    }
    if any(missed):
        names = [s.name for s, far in zip(twin.states, missed, strict=True) if far]
        job.run.log({"event": "warning", "message": f"target not reached: {', '.join(names)}"})
    if job.model is not None:
        found["metamodel"] = _gap(job, lift)
    return found


@torch.no_grad()
def _gap(job: Job, lift: Lift) -> dict[str, Any]:
    assert job.model is not None
    start = lift.paths.x[:, 0].mean(0, keepdim=True)
    paths = on_metamodel(job.model, job.policy, start, job.config.steps)
    there = float(job.objective(paths.x, paths.u).mean())
    here = float(lift.figures["control_cost"].mean())
    far = beyond(job.model, lift.paths.u)
    if far:
        job.run.log(
            {"event": "warning", "message": f"beyond the metamodel's data: {', '.join(far)}"}
        )
    return {
        "fit_error": job.model.fit_error,
        "control_cost": there,
        "gap": here - there,
        "beyond": far,
    }


def _table(job: Job, lift: Lift) -> pd.DataFrame:
    """One row a held-out run and step; the controls of the last step are unknown."""
    x, u = lift.paths.x, lift.paths.u
    runs, moments = x.shape[:2]
    last = torch.full_like(u[:, :1], float("nan"))
    columns: dict[str, Any] = {
        "seed": np.repeat(job.held, moments),
        "step": np.tile(np.arange(moments), runs),
    }
    columns |= _named([s.name for s in job.twin.states], x)
    columns |= _named([c.name for c in job.twin.controls], torch.cat([u, last], 1))
    return pd.DataFrame(columns)


def _named(names: list[str], values: torch.Tensor) -> dict[str, Any]:
    flat = values.flatten(0, 1).numpy()
    return {name: flat[:, place] for place, name in enumerate(names)}
