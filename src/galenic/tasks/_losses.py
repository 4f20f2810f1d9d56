"""Which loss a classifier is trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from galenic.core.config import Config
from galenic.core.errors import ConfigError
from galenic.objectives.imbalance import ClassLoss, LossKind
from galenic.objectives.regression import Huber

if TYPE_CHECKING:
    from galenic.tasks.classify import Job

OF_CLASSES = ("binary", "multiclass", "ordinal")
WEIGHED = ("binary", "multilabel")


class LossConfig(Config):
    """How a class counts in training, by the frequencies of the training split alone; or an error."""

    kind: LossKind | Literal["huber"] = Field(
        "ce",
        description="ce: every sample alike. weighted: a class by its inverse frequency. effective: "
        "by its effective number of samples. cost_matrix: the expected cost. focal: the hard samples "
        "more. logit_adjust: logits raised by the log of the training frequency. huber: of a "
        "continuous label, whose loss is the squared error otherwise.",
    )
    delta: float = Field(
        1.0,
        gt=0,
        description="Of huber: errors beyond it count in proportion, in standard deviations of the "
        "training label.",
    )
    beta: float = Field(0.999, ge=0, lt=1, description="Of effective.")
    gamma: float = Field(2.0, ge=0, description="Of focal; 0 is cross-entropy.")
    costs: list[list[float]] | None = Field(
        None, description="Of cost_matrix: a row a true class, a column a said one."
    )


def build(job: Job) -> nn.Module | None:
    """The loss that `job.config.head.loss` asks for; None for the one of the kind of label.

    Raises:
        ConfigError: If it or a weight does not suit the label, or classes would be weighed twice.
    """
    head, kind = job.config.head, job.label.kind
    config = head.loss
    weighs = (head.pos_weight, head.unlabelled_weight) != (1.0, 1.0)
    if weighs and kind not in WEIGHED:
        raise ConfigError(
            f"A {kind} label has no 1 and 0 to weigh.",
            where="head.pos_weight, head.unlabelled_weight",
            expected=f"a label that is {' or '.join(WEIGHED)}",
        )
    if config.kind == "ce":
        return None
    if config.kind == "huber":
        return _huber(kind, config.delta)
    if kind not in OF_CLASSES:
        raise ConfigError(
            f"A {kind} label has no classes to weigh against each other.",
            where="head.loss.kind",
            expected=f"a label that is {', '.join(OF_CLASSES)}",
            next_step="head.loss.kind=ce",
        )
    if head.label_smoothing or weighs:
        raise ConfigError(
            f"head.loss.kind={config.kind} takes the place of the smoothed and weighed losses.",
            where="head.label_smoothing, head.pos_weight, head.unlabelled_weight",
            next_step="Keep one of them.",
        )
    if job.config.schedule.balance is True and config.kind != "focal":
        raise ConfigError(
            f"schedule.balance=true and head.loss.kind={config.kind} both make up for rare classes: "
            "together they over-correct.",
            next_step="schedule.balance=false",
        )
    train = job.training_targets[job.splits.train]
    counts = torch.from_numpy(np.bincount(train, minlength=len(job.label.classes)))
    return ClassLoss(config.kind, counts, beta=config.beta, gamma=config.gamma, costs=config.costs)


def _huber(kind: str, delta: float) -> Huber:
    if kind != "continuous":
        raise ConfigError(
            f"A {kind} label has no error that is a number.",
            where="head.loss.kind=huber",
            expected="a label that is continuous",
            next_step="columns.kind=continuous, or head.loss.kind=ce",
        )
    return Huber(delta=delta)
