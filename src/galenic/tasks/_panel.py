"""Finished runs of one pretrained network side by side: what a merge of them is judged by.

Each run keeps its own data and its own head. All share one network, which takes the weights of
any merge of theirs for the price of one addition.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from galenic import tuners
from galenic.core.config import parse
from galenic.core.errors import ConfigError, DataError, WeightsError
from galenic.core.hardware import device
from galenic.core.prediction import predict
from galenic.core.progress import tell, track
from galenic.core.run import Run
from galenic.core.seeding import seed_everything
from galenic.evaluation.bootstrap import estimate
from galenic.evaluation.metrics import point, redrawn
from galenic.evaluation.protocol import ScoreConfig, to_scores
from galenic.merging.vectors import TaskVectors, along, tensors_of
from galenic.models.heads import LinearHead
from galenic.tasks import classify
from galenic.tasks._job import quickened

# Kinds of head whose weights are one linear layer's.
LINEAR = ("linear", "own")
Array = np.ndarray[Any, np.dtype[Any]]
PARTS = {"val": "validation", "test": "test"}
# Of all other kinds, accuracy: what papers on merging normalise.
METRICS = {"multilabel": "auroc", "continuous": "r2"}


@dataclass
class Expert:
    """One finished run.

    Attributes:
        run: Its folder.
        job: Its data, its head, and the network that all experts share.
        own: Scores of its own network, by part, as the run wrote them.
    """

    run: Run
    job: classify.Job
    own: dict[str, Array]

    @property
    def metric(self) -> str:
        """What its figures are."""
        return METRICS.get(self.job.label.kind, "accuracy")

    def targets(self, part: str) -> Array:
        """Of the control, validation has the shuffled labels that training had."""
        job = self.job
        every = job.targets if part == "test" else job.training_targets
        return every[getattr(job.splits, part)]

    def scores(self, part: str) -> Array:
        """Scores of the shared network, as it is now, under this run's head."""
        job = self.job
        logits = predict(
            job.objective,
            job.rows(part),
            collate=job.collate,
            batch_size=job.config.schedule.eval_batch_size,
        )["logits"]
        unit = (job.objective.centre.item(), job.objective.spread.item())
        return to_scores(job.label.kind, logits, unit)

    def figure(self, part: str, scores: Array) -> float:
        """The metric of some scores."""
        return point(self.job.label.kind, self.metric, self.targets(part), scores)

    def normalised(self, part: str) -> float:
        """The figure of the shared network over that of its own; NaN where one of them is none."""
        scores = self.scores(part)
        if not np.isfinite(scores).all():
            return math.nan
        return _ratio(self.figure(part, scores), self.figure(part, self.own[part]))

    def heads(self) -> dict[str, Tensor]:
        """Tensors of its head, under names of their own."""
        return {f"head.{k}": t for k, t in self.job.objective.head.state_dict().items()}


class Panel:
    """Several experts on one network.

    Args:
        runs: Finished `classify` runs by name.
        folder: A new folder for their task vectors.
        heads: Whether heads are merged too: only for runs of one task.

    Raises:
        ConfigError: If a run cannot take part, with the reason.
        WeightsError: If they did not start from the same network.
        DataError: If the data of a run is no longer what it was.
    """

    def __init__(self, runs: Mapping[str, Run], folder: Path, *, heads: bool = False) -> None:
        self.experts: dict[str, Expert] = {}
        self._asked: Any = None
        self._vector: dict[str, Tensor] = {}
        for name, run in runs.items():
            expert = self.experts[name] = opened(run)
            backbone = expert.job.backbone
            own_head = expert.heads() if heads else {}
            if len(self.experts) == 1:
                self._first = name, backbone.fingerprint
                self.vectors = TaskVectors(folder, tensors_of(backbone.network) | own_head)
            elif backbone.fingerprint != self._first[1]:
                raise WeightsError(
                    f"'{name}' and '{self._first[0]}' did not start from the same network: "
                    f"{backbone.fingerprint} and {self._first[1]}.",
                    where=str(run.path),
                    expected="runs with one `backbone`",
                )
            if take_up(expert):
                self.vectors.add(name, tensors_of(backbone.network) | own_head)
            if len(self.experts) == 1:
                self.network = backbone.network
            backbone.network = self.network
        # Of a frozen network, as an adapter leaves it, features would be computed once for all merges.
        self.network.requires_grad_(True)
        for expert in self.experts.values():
            expert.job.objective.to(device())
        first = self.experts[self._first[0]]
        self.tensors = tensors_of(self.network) | (first.heads() if heads else {})
        self.vectors.apply(self.tensors, {}, 0)

    def put(
        self,
        method: str,
        names: Sequence[str],
        settings: Mapping[str, Any],
        *,
        each: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        """Give the network the merge of `names`; those whose network was frozen add nothing.

        Raises:
            ConfigError: If all were frozen, or the method or a setting does not fit.
        """
        tuned = [name for name in names if name in self.vectors]
        if not tuned:
            raise ConfigError(
                f"The networks of {', '.join(names)} were frozen: there is nothing to merge.",
                expected="runs that tuned the network, such as `galenic run full`",
            )
        parameters, alpha = along(method, settings)
        asked = (method, tuned, parameters, each, seed)
        if asked != self._asked:
            # The old one goes first: there is room for one.
            self._asked, self._vector = None, {}
            self._vector = self.vectors.combine(tuned, method, parameters, each=each, seed=seed)
            self._asked = asked
        self.vectors.apply(self.tensors, self._vector, alpha)

    def sweep(
        self,
        method: str,
        names: Sequence[str],
        points: Sequence[Mapping[str, Any]],
        on: Sequence[str],
        fixed: Mapping[str, Any],
        **options: Any,
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Try every point on validation rows; test is not looked at.

        Args:
            method: As for :meth:`put`.
            names: What is merged.
            points: Settings to try.
            on: Whose validation rows judge.
            fixed: Settings that all points share.
            **options: As for :meth:`put`.

        Returns:
            A row a point, and the row with the best mean; of equal ones the first.

        Raises:
            ConfigError: If no task can judge.
            WeightsError: If no point gives a network whose scores are numbers.
        """
        judges = self.judges(on)
        rows: list[dict[str, Any]] = []
        for settings in track(points, "sweep"):
            self.put(method, names, {**fixed, **settings}, **options)
            each = {name: self.experts[name].normalised("val") for name in on}
            rows.append(
                {
                    "settings": dict(settings),
                    "normalised": each,
                    "mean": statistics.fmean(each[name] for name in judges),
                }
            )
        best = max(rows, key=lambda row: -math.inf if math.isnan(row["mean"]) else row["mean"])
        if math.isnan(best["mean"]):
            raise WeightsError(
                f"None of the {len(rows)} merges gives scores that are numbers.",
                expected="a network without NaN",
                next_step="Use a smaller alpha, or method=soup.",
            )
        return rows, best

    def judges(self, on: Sequence[str]) -> list[str]:
        """Those of `on` by whose own validation figure another can be divided.

        Raises:
            ConfigError: If none is left.
        """
        own = {name: self.experts[name].figure("val", self.experts[name].own["val"]) for name in on}
        found = [name for name, figure in own.items() if figure > 0]
        told = [f"{self.experts[n].metric} {own[n]:.3g} of {n}" for n in on if n not in found]
        if not found:
            raise ConfigError(
                f"No task can judge a merge: {', '.join(told)} on its own validation rows.",
                expected="a fine-tuning that is better than nothing on validation rows",
                next_step="Train longer, or judge by another task.",
            )
        if told:
            tell(f"Left out of the mean, as nothing can be divided by it: {', '.join(told)}.")
        return found

    def test(self, names: Sequence[str], config: ScoreConfig, seed: int) -> dict[str, Any]:
        """Figures of the network as it is on the test rows of `names`.

        Returns:
            `tasks`: of each, its metric, figure, that of its own network and their ratio; `mean`: of
            the ratios, with its interval over resampled patients; a task whose own figure is not
            above zero has none, and is not in it.
        """
        tasks, ratios, drawn, patients = {}, [], [], 0
        for name in names:
            expert = self.experts[name]
            groups = expert.job.cohort.patient_ids[expert.job.splits.test]
            both = [
                redrawn(
                    expert.job.label.kind, expert.metric, expert.targets("test"), scores, groups,
                    resamples=config.resamples, seed=seed,
                )
                for scores in (expert.scores("test"), expert.own["test"])
            ]  # fmt: skip
            (value, values), (own, owns) = both
            ratio = _ratio(value, own)
            tasks[name] = {
                "metric": expert.metric, "value": value, "own": own, "normalised": ratio,
            }  # fmt: skip
            if math.isnan(ratio):
                tell(f"Left out of the mean on test rows: {name}, whose own figure is {own:.3g}.")
                continue
            ratios.append(ratio)
            drawn.append(np.divide(values, owns, out=np.full_like(values, np.nan), where=owns > 0))
            patients += len(np.unique(groups))
        if not ratios:
            raise ConfigError(
                f"No test figure of {', '.join(names)} can be divided by that of its own network.",
                expected="a fine-tuning that is better than nothing on test rows",
                next_step="Train longer, or merge another task.",
            )
        interval = estimate(
            statistics.fmean(ratios), np.mean(drawn, axis=0), config.level, patients
        )
        return {"tasks": tasks, "mean": interval.to_dict()}


def opened(run: Run) -> Expert:
    """A finished run with its head, on the network that it started from.

    Raises:
        ConfigError: If it is no finished run of `classify` with a linear head.
        DataError: If its rows are no longer those that it scored.
    """
    task, name = run.provenance.get("task"), run.path.name
    config = parse(classify.Config, run.config, str(run.path)) if task == "classify" else None
    if config is None or run.state != "finished" or config.head.kind not in LINEAR:
        fault = f"is of the task '{task}'" if config is None else f"is {run.state}"
        if config is not None and run.state == "finished":
            fault = f"has no linear head, but one of the kind '{config.head.kind}'"
        raise ConfigError(
            f"'{name}' {fault}.",
            where=str(run.path),
            expected="a finished run of `classify`, such as `galenic run full`",
        )
    state = load_file(run.path / "head.safetensors")
    head = LinearHead(*reversed(state["linear.weight"].shape))
    head.load_state_dict(state)
    seed_everything(config.seed)
    if config.quick:
        config = quickened(config)
    # What the run tuned is taken up later, as weights of the whole network.
    plain = config.model_copy(update={"tuner": {"method": "full"}, "cache": None})
    job = classify.Job(plain, run, head=lambda _: head)
    return Expert(run, job, {part: written(run, job, part) for part in PARTS})


def take_up(expert: Expert) -> bool:
    """Give the network what the run trained; false where that is nothing.

    Raises:
        ConfigError: If what was trained does not fold into the network's own weights.
    """
    run, backbone = expert.run, expert.job.backbone
    if not (run.path / "adapter").is_dir():
        return False
    before = {name: t.shape for name, t in backbone.network.state_dict().items()}
    tuner = tuners.parse_tuner(run.config["tuner"])
    tuners.load(backbone, tuner, run.path / "adapter")
    method = run.config["tuner"]["method"]
    if hasattr(backbone.network, "merge_and_unload") and tuners.capabilities(method).mergeable:
        fold: Any = backbone.network.merge_and_unload
        backbone.network = fold()
    if {name: t.shape for name, t in backbone.network.state_dict().items()} != before:
        raise ConfigError(
            f"What '{method}' trained does not fold into the weights of the network.",
            where=str(run.path),
            expected="a run of tuner.method=full, bitfit, lora or another that can be merged",
        )
    return True


def written(run: Run, job: classify.Job, part: str) -> Array:
    """Scores that the run wrote for its own network."""
    table = pd.read_parquet(run.path / "predictions.parquet")
    table = table[table["split"] == part]
    if not np.array_equal(table["row"].to_numpy(), getattr(job.splits, part)):
        raise DataError(
            f"The {PARTS[part]} rows of '{run.path.name}' are no longer those that it scored.",
            where=job.cohort.name,
            next_step="Run it again on the data as it is now.",
        )
    scores = table.filter(regex=r"^score_\d+$").to_numpy()
    return scores[:, 0] if job.label.kind in ("binary", "continuous") else scores


def _ratio(value: float, own: float) -> float:
    return value / own if own > 0 else math.nan
