"""What stands on the pooled feature."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor, nn

from galenic.core.config import Config
from galenic.core.errors import ConfigError
from galenic.core.run import Run
from galenic.models.growth import grow, sources
from galenic.models.heads import CumulativeHead, LinearHead, NeighbourHead
from galenic.models.trees import Forest, TreesHead
from galenic.pipeline import boosting
from galenic.pipeline.boosting import TreesConfig
from galenic.pipeline.votes import votes_of
from galenic.tasks._losses import OF_CLASSES, WEIGHED, LossConfig

if TYPE_CHECKING:
    from galenic.tasks.classify import Job

Array = np.ndarray[Any, np.dtype[Any]]


class HeadConfig(Config):
    """What stands on the pooled feature, and how its outputs are scored in training."""

    kind: Literal["linear", "knn", "trees", "own", "cumulative"] = Field(
        "linear",
        description="trees: gradient boosting on what the frozen network gives. own: the head that the checkpoint was trained with, its outputs found by the "
        "names of the labels; a frozen network keeps it as it is. cumulative: one direction and "
        "ascending thresholds for the grades of an ordinal label.",
    )
    grow_from: str | None = Field(
        None,
        description="Run folder whose linear head this one begins as: rows by the names of the "
        "classes, and of a new class at zero.",
    )
    mapping: dict[str, str] = Field(
        {},
        description="New class: old class, where names differ. Several may come of one, whose "
        "probability they divide among them.",
    )
    loss: LossConfig = LossConfig()
    standardise: bool = Field(
        True, description="Centre and scale features by the frozen backbone's training features."
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    pos_weight: float = Field(1.0, gt=0, description="Of a 1 in the loss (binary and multi-label).")
    unlabelled_weight: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Of a 0 in the loss (binary and multi-label): below 1 where a finding that "
        "nobody wrote down may still be there.",
    )
    neighbours: int = Field(10, ge=1, description="k, for knn.")
    temperature: float = Field(0.07, gt=0, description="Of the votes, for knn.")
    trees: TreesConfig = TreesConfig()

    @model_validator(mode="after")
    def _grows(self) -> HeadConfig:
        if self.grow_from is not None and self.kind != "linear":
            raise ValueError("grow_from needs kind=linear")
        if self.mapping and self.grow_from is None:
            raise ValueError("mapping needs grow_from, the run whose classes it names")
        return self


def build(job: Job) -> nn.Module:
    """The head that `job.config.head` asks for, before the backbone is tuned.

    Args:
        job: With its backbone open.

    Raises:
        ConfigError: If the head does not suit the label or the backbone.
    """
    config, kind = job.config.head, job.label.kind
    if config.kind == "own":
        return _own(job)
    width, outputs = job.backbone.width, job.label.outputs
    if config.kind == "knn":
        if job.config.tuner["method"] != "none":
            raise ConfigError(
                "Neighbours vote by frozen features: nothing below them trains.",
                where="tuner.method",
                expected="none",
                next_step="head.kind=linear to tune",
            )
        near = NeighbourHead(width, outputs, config.neighbours, config.temperature)
        votes = votes_of(kind, job.training_targets[job.splits.train], outputs, *job.target_unit)
        near.remember(torch.from_numpy(job.pooled("train")), torch.from_numpy(votes))
        return near
    if config.kind == "trees":
        return trees(job, job.pooled("train"))
    if config.kind == "cumulative" and kind != "ordinal":
        raise ConfigError(
            f"A {kind} label has no grades in an order.",
            where="head.kind=cumulative",
            expected="an ordinal label",
            next_step="columns.kind=ordinal, or head.kind=linear",
        )
    make = CumulativeHead if config.kind == "cumulative" else LinearHead
    linear = make(width, outputs, config.dropout)
    if config.grow_from is not None:
        _grow(job, linear, config.grow_from)
    elif config.standardise:
        linear.standardise(torch.from_numpy(job.pooled("train")))
    return linear


def restored(config: HeadConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """The head of a finished run, without its data.

    Args:
        config: Of the run.
        state: What it saved.
    """
    if config.kind == "knn":
        return NeighbourHead.of(state, config.neighbours, config.temperature)
    if config.kind == "trees":
        return TreesHead(Forest(**state))
    if config.kind == "cumulative":
        return _filled(CumulativeHead(state["mean"].shape[0], len(state["log_gaps"]) + 2), state)
    return _filled(LinearHead(*reversed(state["linear.weight"].shape)), state)


def _filled(head: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    head.load_state_dict(dict(state))
    return head


def trees(job: Job, features: Array) -> TreesHead:
    """Boosted trees for the label of `job`.

    Args:
        job: With its training targets.
        features: Of the training samples [n, F].

    Raises:
        ConfigError: If something is to train below the trees, or by another loss than theirs.
    """
    config, kind = job.config.head, job.label.kind
    if job.config.tuner["method"] != "none":
        raise ConfigError(
            "No gradient passes trees: what stands below them stays frozen.",
            where="tuner.method",
            expected="none",
        )
    if config.loss.kind not in ("ce", "weighted") or config.label_smoothing:
        smoothed = " with smoothed labels" if config.label_smoothing else ""
        raise ConfigError(
            f"Trees are not grown by head.loss.kind={config.loss.kind}{smoothed}.",
            where="head.loss, head.label_smoothing",
            expected="ce or weighted, and no smoothing",
        )
    targets = job.training_targets[job.splits.train]
    weights = None
    if kind == "continuous":
        centre, spread = job.target_unit
        targets = (targets - centre) / spread
    elif config.loss.kind == "weighted" and kind in OF_CLASSES:
        weights = compute_sample_weight("balanced", targets)
    elif kind in WEIGHED and (config.pos_weight, config.unlabelled_weight) != (1.0, 1.0):
        weights = np.where(targets == 1, config.pos_weight, config.unlabelled_weight)
    started = time.perf_counter()
    head = boosting.grow(
        kind, features, targets, job.label.outputs,
        config=config.trees, seed=job.config.seed, weights=weights,
    )  # fmt: skip
    job.fit_seconds += time.perf_counter() - started
    return head


def _grow(job: Job, head: LinearHead, folder: str) -> None:
    trained = Run.open(Path(folder))
    scores = trained.read_json("metrics.json")
    for name, kind in ((trained.path.name, scores["kind"]), (job.cohort.name, job.label.kind)):
        if kind not in OF_CLASSES:
            raise ConfigError(
                f"The label of '{name}' is {kind}: it has no rows to carry over.",
                where="head.grow_from",
                expected=f"a label that is {', '.join(OF_CLASSES)}",
            )
    rows = sources(scores["classes"], job.label.classes, job.config.head.mapping)
    grow(head, load_file(trained.path / "head.safetensors"), rows)


def _own(job: Job) -> nn.Module:
    label, trained = job.label, job.backbone.head
    if trained is None or label.kind not in WEIGHED:
        raise ConfigError(
            f"'{job.backbone.spec}' brings no head."
            if trained is None
            else f"The label is {label.kind}; the checkpoint's head names findings.",
            where="head.kind=own",
            expected="a checkpoint with its head, and labels of 0 and 1 named as its outputs",
            next_step="head.kind=linear",
        )
    names = label.classes if label.kind == "multilabel" else label.columns
    head = trained.of(names)
    return head.requires_grad_(job.config.tuner["method"] != "none")
