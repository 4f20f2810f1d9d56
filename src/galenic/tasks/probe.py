"""Linear probes of several depths and rates, trained together; validation chooses one.

The protocol of Baharoon et al., 2023, arXiv 2312.02366, after the evaluation of DINOv2 (Oquab et
al., 2023): the chosen settings are trained anew on training and validation together, and test
samples are read once, behind the choice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from galenic.core.config import Config as BaseConfig
from galenic.core.errors import ConfigError
from galenic.core.meters import count_parameters
from galenic.core.prediction import predict
from galenic.core.run import Run
from galenic.evaluation.metrics import MAIN, greater_is_better, point
from galenic.evaluation.protocol import to_scores
from galenic.objectives.classification import Classifier
from galenic.objectives.probe import JointProbe, ProbeHead
from galenic.pipeline.frozen import Rows
from galenic.pipeline.levels import LevelEncoder
from galenic.tasks import _classify_config, classify
from galenic.tasks._job import carry_out, reopened

Array = np.ndarray[Any, np.dtype[Any]]


class ProbeConfig(BaseConfig):
    """What is tried; every combination is one probe."""

    blocks: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 4], min_length=1, description="Last blocks whose features stand."
    )
    average: list[bool] = Field(
        [False, True],
        min_length=1,
        description="Whether the mean token of the last one joins them.",
    )
    lrs: list[Annotated[float, Field(gt=0)]] = Field(
        [1e-4, 5e-4, 1e-3, 5e-3],
        min_length=1,
        description="Peak rates; a tenth of the paper's, which are for SGD.",
    )
    refit: bool = Field(True, description="Train the chosen one anew, with validation in it.")


class Config(_classify_config.Config):
    """Everything that `probe` can be told; the network is frozen, and `schedule.lr` unused."""

    probe: ProbeConfig = ProbeConfig()


@dataclass(frozen=True)
class Choice:
    """One probe's settings."""

    blocks: int
    average: bool
    lr: float


def run(config: Config, run: Run) -> None:
    """Open, split, probe, choose, predict and score; every file of `run` is written.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, ProbeJob)


def load(run: Run) -> tuple[ProbeJob, Classifier]:
    """The chosen probe of a finished run, and the job that knows its data."""
    job = reopened(run, Config, ProbeJob)
    job.objective = job.classifier(Choice(**run.read_json("probe.json")["chosen"]))
    return classify.restored(job)


def restored(levels: LevelEncoder, choice: Choice, state: Mapping[str, Tensor]) -> ProbeHead:
    """The chosen probe of a finished run, without its data.

    Args:
        levels: On the network of the run.
        choice: What its `probe.json` says.
        state: What it saved.
    """
    columns = levels.columns(choice.blocks, choice.average)
    head = ProbeHead(columns, len(state["head.linear.bias"]))
    head.load_state_dict(dict(state))
    return head


class ProbeJob(classify.Job):
    """One run, step by step.

    Attributes:
        choices: All probes.
        held: Logits of validation, of the chosen probe before it had seen them.
    """

    config: Config
    held: Array

    def _objective(self) -> Classifier:
        config = self.config
        if config.tuner["method"] != "none" or config.head.kind != "linear":
            raise ConfigError(
                "A probe stands on a frozen network, and is linear.",
                where="tuner.method, head.kind",
                expected="tuner.method=none, head.kind=linear",
            )
        probe = config.probe
        self.levels = LevelEncoder(self.backbone, max(probe.blocks))
        self.choices = [Choice(*one) for one in product(probe.blocks, probe.average, probe.lrs)]
        return self.classifier(self.choices[0])

    def _pooled_encoder(self) -> nn.Module:
        return self.levels

    def pooled(self, part: str) -> Array:
        """Features of all levels for `train`, `val` or `test`."""
        if part not in self._features:
            started = time.perf_counter()
            rows = getattr(self.splits, part).tolist()
            found = self._cache().packed(self.levels, self.inputs, rows)
            self._features[part] = np.stack(found)
            self.feature_seconds += time.perf_counter() - started
        return self._features[part]

    def classifier(self, choice: Choice) -> Classifier:
        """An untrained probe."""
        self._head = lambda job: self._probe(choice)
        return super()._objective()

    def _probe(self, choice: Choice) -> ProbeHead:
        columns = self.levels.columns(choice.blocks, choice.average)
        head = ProbeHead(columns, self.label.outputs, self.config.head.dropout)
        if self.config.head.standardise:
            head.standardise(torch.from_numpy(self.pooled("train")))
        return head

    # Doing ------------------------------------------------------------------------------

    def train(self) -> None:
        """Fit all probes at once, choose one on validation, and fit that anew."""
        joint = JointProbe([self.classifier(choice) for choice in self.choices])
        top = max(choice.lr for choice in self.choices)
        rates = {
            name: self.choices[int(name.split(".")[1])].lr / top
            for name, _ in joint.named_parameters()
        }
        self._fit(joint, self.rows("train"), top, "joint", rates)
        figures = self._judged(joint)
        best = int(np.argmax(figures))
        chosen = self.choices[best]
        name = MAIN[self.label.kind]
        tried = [
            {**asdict(choice), name: self._sign * figure if np.isfinite(figure) else None}
            for choice, figure in zip(self.choices, figures, strict=True)
        ]
        self.run.write_json("probe.json", {"chosen": asdict(chosen), "tried": tried})
        self.objective = joint.classifiers[best]  # type: ignore[assignment]
        if self.config.probe.refit:
            self.objective = self.classifier(chosen)
            self._fit(self.objective, self._both(), chosen.lr, "refit")
        self.parameters = count_parameters(self.objective)

    @property
    def _sign(self) -> int:
        return 1 if greater_is_better(MAIN[self.label.kind]) else -1

    def _judged(self, joint: JointProbe) -> Array:
        """How good each probe is on validation, more being better; the best one's logits stay."""
        kind, rows = self.label.kind, self.splits.val
        logits = predict(
            joint, self.rows("val"), collate=self.collate,
            batch_size=self.config.schedule.eval_batch_size,
        )  # fmt: skip
        every = [logits[f"logits_{place}"] for place in range(len(self.choices))]
        figures = self._sign * np.array(
            [
                point(
                    kind,
                    MAIN[kind],
                    self.training_targets[rows],
                    to_scores(kind, one, self._unit()),
                )
                for one in every
            ]
        )
        figures = np.where(np.isnan(figures), -np.inf, figures)
        self.held = every[int(np.argmax(figures))]
        return figures

    def _fit(
        self,
        objective: nn.Module,
        rows: Rows,
        lr: float,
        folder: str,
        rates: dict[str, float] | None = None,
    ) -> None:
        # No clipping: the norm of one probe's gradient must not slow another.
        settings = {"lr": lr, "clip_norm": None, "patience": None, "keep_best": False}
        self.fit(
            objective, rows, Rows([], self.targets), collate=self.collate, folder=folder,
            schedule=self.config.schedule.model_copy(update=settings), rates=rates,
        )  # fmt: skip

    def _both(self) -> Rows:
        """Training and validation."""
        rows = np.concatenate([self.splits.train, self.splits.val]).tolist()
        features = np.concatenate([self.pooled("train"), self.pooled("val")])
        return Rows(rows, self.training_targets, ahead={"features": features})

    def evaluate(self) -> None:
        """Predict test, for the first time, and write every number.

        Figures, temperatures and thresholds of validation are those of the probe that had not
        seen it.
        """
        test = predict(
            self.objective, self.rows("test"), collate=self.collate,
            batch_size=self.config.schedule.eval_batch_size,
        )["logits"]  # fmt: skip
        self.tell({"val": self.held, "test": test}, self.cohort)
