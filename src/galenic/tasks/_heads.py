"""What stands on the pooled feature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import nn

from galenic.core.config import Config
from galenic.core.errors import ConfigError
from galenic.models.heads import LinearHead, NeighbourHead
from galenic.pipeline.votes import votes_of

if TYPE_CHECKING:
    from galenic.tasks.classify import Job

WEIGHED = ("binary", "multilabel")


class HeadConfig(Config):
    """What stands on the pooled feature, and how its outputs are scored in training."""

    kind: Literal["linear", "knn", "own"] = Field(
        "linear",
        description="own: the head that the checkpoint was trained with, its outputs found by the "
        "names of the labels; a frozen network keeps it as it is.",
    )
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


def build(job: Job, outputs: int, unit: tuple[float, float]) -> nn.Module:
    """The head that `job.config.head` asks for, before the backbone is tuned.

    Args:
        job: With its backbone open.
        outputs: Number of logits.
        unit: Centre and spread of a continuous target.

    Raises:
        ConfigError: If the head does not suit the label or the backbone.
    """
    config, kind = job.config.head, job.label.kind
    weighs = (config.pos_weight, config.unlabelled_weight) != (1.0, 1.0)
    if weighs and kind not in WEIGHED:
        raise ConfigError(
            f"A {kind} label has no 1 and 0 to weigh.",
            where="head.pos_weight, head.unlabelled_weight",
            expected=f"a label that is {' or '.join(WEIGHED)}",
        )
    if config.kind == "own":
        return _own(job)
    width = job.backbone.width
    if config.kind == "knn":
        near = NeighbourHead(width, outputs, config.neighbours, config.temperature)
        votes = votes_of(kind, job.training_targets[job.splits.train], outputs, *unit)
        near.remember(torch.from_numpy(job.pooled("train")), torch.from_numpy(votes))
        return near
    linear = LinearHead(width, outputs, config.dropout)
    if config.standardise:
        linear.standardise(torch.from_numpy(job.pooled("train")))
    return linear


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
