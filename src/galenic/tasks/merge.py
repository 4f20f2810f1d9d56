"""Several tasks in one network: fine-tune it on each, then merge what was learned.

Coefficients are chosen on the validation rows of the first tasks, and then hold for all of them, as
Davari and Belilovsky, "Model Breadcrumbs", ECCV 2024, arXiv 2312.06795, section 4.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from galenic.core.config import Config as BaseConfig
from galenic.core.config import parse
from galenic.core.errors import ConfigError
from galenic.core.hardware import device
from galenic.core.provenance import versions
from galenic.core.run import Run
from galenic.evaluation.protocol import ScoreConfig
from galenic.merging import grid as grids
from galenic.merging import methods
from galenic.pipeline.config import Columns, open_cohort
from galenic.tasks import classify
from galenic.tasks._job import carry_out, reopened
from galenic.tasks._panel import Panel, written
from galenic.tasks._side import classified

Method = Literal[
    "breadcrumbs", "task_arithmetic", "ties", "dare", "random_mask", "top_k", "wise", "soup"
]
# What a word here is in `galenic.merging.methods`, and what it fixes there.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random_mask": ("dare", {"rescale": "none"}),
    "top_k": ("breadcrumbs", {"gamma": 0.0}),
    "wise": ("task_arithmetic", {"normalize": True}),
    "soup": ("linear", {}),
}
_FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]
_KEPT = [0.1, 0.2, 0.5, 0.9]
_LINE = [round(0.05 * step, 2) for step in range(1, 21)]
# Twenty points each: no method is tried more often than another.
GRIDS: dict[str, dict[str, list[float]]] = {
    "breadcrumbs": {"alpha": _FIVE, "density": _KEPT},
    "top_k": {"alpha": _FIVE, "density": _KEPT},
    "random_mask": {"alpha": _FIVE, "density": _KEPT},
    "dare": {"alpha": _FIVE, "density": _KEPT},
    "ties": {"alpha": [0.4, 0.7, 1.0, 1.3, 1.6], "density": _KEPT},
    "task_arithmetic": {"alpha": _LINE},
    "wise": {"alpha": _LINE},
    "soup": {},
}


class Task(BaseConfig):
    """One more cohort."""

    data: str = Field(description="As `data`; a path may be relative to the folder of `data`.")
    columns: Columns = Columns()
    tuner: dict[str, Any] | None = Field(
        None,
        description="None: as `tuner`. {method: none} learns a head alone, and adds no change.",
    )


class Config(classify.Config):
    """Everything that `merge` can be told: `data` is the first task."""

    tuner: dict[str, Any] = Field({"method": "full"}, description="Of every fine-tuning.")
    others: dict[str, Task] = Field({}, description="Further tasks by name, in order.")
    method: Method = Field(
        "breadcrumbs",
        description="random_mask and top_k are its ablations; wise is the line from the pretrained "
        "network to the mean of the tuned ones; soup is that mean.",
    )
    parameters: dict[str, Any] = Field({}, description="Of the method, where not in `grid`.")
    grid: dict[str, list[float]] | None = Field(
        None, description="Coefficients that are tried; None: twenty points that suit the method."
    )
    choose_on: int = Field(
        2, ge=1, description="Coefficients are chosen on so many tasks, the first."
    )

    @model_validator(mode="after")
    def _fits(self) -> Config:
        empty = [key for key, values in self.tried().items() if not values]
        if empty:
            raise ValueError(f"grid: {empty[0]} has no values")
        for settings in self.points():
            values = {**self.fixed(), **settings, "method": self.engine()}
            parse(methods.method(self.engine()).Config, values, "parameters and grid").check()
        return self

    def engine(self) -> str:
        """The name of the method in `galenic.merging.methods`."""
        return METHODS.get(self.method, (self.method, {}))[0]

    def fixed(self) -> dict[str, Any]:
        """Settings that every point shares."""
        return {**METHODS.get(self.method, ("", {}))[1], **self.parameters}

    def tried(self) -> dict[str, list[float]]:
        """Values that are tried, by coefficient; what `parameters` fixes is not."""
        found = GRIDS[self.method] if self.grid is None else self.grid
        return {key: values for key, values in found.items() if key not in self.parameters}

    def points(self) -> list[dict[str, float]]:
        """Settings that are tried."""
        return grids.points(self.tried())


def run(config: Config, run: Run) -> None:
    """Fine-tune on every task, choose on the first, merge, and score.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, make)


def load(run: Run) -> tuple[classify.Job, Any]:
    """The merged network of a finished run under the head of its first task, and the job."""
    return classify.restored(reopened(run, Config, make))


def make(config: Config, run: Run) -> MergeJob:
    """The job; a quick one tries one point."""
    if config.quick:
        last = {key: values[-1:] for key, values in config.tried().items()}
        config = config.model_copy(update={"grid": last})
    return MergeJob(config, run)


class MergeJob(classify.Job):
    """One merge run, on the cohort of its first task.

    Attributes:
        tasks: Every task by name, the first first.
        document: What `sweep.json` holds, once that is known.
    """

    def __init__(self, config: Config, run: Run) -> None:
        # What comes out is a whole network, whatever the fine-tunings train of it.
        super().__init__(config.model_copy(update={"tuner": {"method": "full"}}), run)
        self.told = config
        first = Task(data=config.data, columns=config.columns)
        if self.cohort.name in config.others:
            raise ConfigError(
                f"Two tasks are called '{self.cohort.name}'.",
                where="others",
                expected=f"another name than that of `data`: {self.cohort.name}",
            )
        self.tasks = {self.cohort.name: first, **config.others}
        self.document: dict[str, Any] = {}

    def train(self) -> None:
        """Every fine-tuning, the choice, and the merges of the first two tasks and of more."""
        told = self.told
        runs = {name: self._tuned(task, told.shuffle_labels) for name, task in self.tasks.items()}
        for made in runs.values():
            cost = made.read_json("cost.json")
            self.fit_seconds += cost["fit_seconds"]
            self.steps += cost["steps"]
        folder = self.run.path / "work" / "vectors"
        shutil.rmtree(folder, ignore_errors=True)
        panel = Panel(runs, folder)
        if told.shuffle_labels:
            self._true_own(panel)
        self.document = self._merged(panel)
        self.backbone.network.load_state_dict(panel.network.state_dict())
        head = panel.experts[next(iter(runs))].job.objective.head
        self.objective.head.load_state_dict(head.state_dict())
        self.objective.to(device())
        shutil.rmtree(folder)

    def _merged(self, panel: Panel) -> dict[str, Any]:
        """What `sweep.json` holds; the network of `panel` ends as the merge of all tasks."""
        told, names = self.told, list(self.tasks)
        chosen_on = names[: told.choose_on]
        rows, best = panel.sweep(
            told.engine(), chosen_on, told.points(), chosen_on, told.fixed(), seed=told.seed
        )
        settings = {**told.fixed(), **best["settings"]}
        counts = []
        for count in range(min(2, len(names)), len(names) + 1):
            panel.put(told.engine(), names[:count], settings, seed=told.seed)
            counts.append({"count": count, **panel.test(names[:count], told.score, told.seed)})
        return {
            "method": told.method,
            "merged": names,
            "scored": names,
            "chosen_on": chosen_on,
            "chosen": settings,
            "best": best,
            "points": rows,
            "test": counts[-1],
            "counts": counts,
        }

    def evaluate(self) -> None:
        """Score the first task as any run does, and add the figures over all tasks."""
        super().evaluate()
        metrics = self.run.read_json("metrics.json")
        for row in self.document["counts"]:
            metrics["test"][f"normalised_{row['count']}"] = row["mean"]
        metrics["test"]["normalised"] = self.document["test"]["mean"]
        self.run.write_json("metrics.json", metrics)
        self.run.write_json("sweep.json", self.document)

    def _true_own(self, panel: Panel) -> None:
        """Of the control, test figures are divided by those of models with their true labels."""
        for name, task in self.tasks.items():
            expert = panel.experts[name]
            expert.own["test"] = written(self._tuned(task, False), expert.job, "test")

    def _tuned(self, task: Task, shuffle: bool) -> Run:
        """The fine-tuning of one task: from the cache where one with this config is there."""
        told = self.told
        config = parse(
            classify.Config,
            {
                **told.model_dump(include=set(classify.Config.model_fields)),
                "data": self._place(task.data),
                "columns": task.columns.model_dump(),
                "tuner": task.tuner or told.tuner,
                "score": ScoreConfig(resamples=0).model_dump(),
                "shuffle_labels": shuffle,
            },
            "config of a fine-tuning",
        )
        cohort = open_cohort(config.data, config.columns, quick=config.quick)
        asked = [versions(), config.model_dump(mode="json", exclude={"cache"}), cohort.fingerprint]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        root = Path(told.cache) if told.cache else self.run.path
        return classified(root / "tuned" / key, config)

    def _place(self, data: str) -> str:
        """A manifest named from here, or from the folder of the first one."""
        beside = Path(self.told.data).parent / data
        return str(beside) if not Path(data).exists() and beside.exists() else data
