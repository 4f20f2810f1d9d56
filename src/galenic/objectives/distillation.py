"""Distillation through a token: a student that answers to the labels and to a teacher.

Touvron et al., "Training data-efficient image transformers & distillation through attention",
ICML 2021, arXiv 2012.12877.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from galenic.models.heads import LinearHead
from galenic.objectives.classification import Classifier
from galenic.objectives.imbalance import as_classes

Mode = Literal["hard", "soft"]
# Of a batch's keys that are the teacher's own inputs.
SEEN = "teacher."


class TwoHeads(nn.Module):
    """One linear head on the class token, and one on the distillation token.

    Args:
        width: Of a token.
        outputs: Logits of each head.
        dropout: Probability of dropping a feature.
    """

    def __init__(self, width: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.own = LinearHead(width, outputs, dropout)
        self.taught = LinearHead(width, outputs, dropout)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> TwoHeads:
        """Heads with another one's state."""
        outputs, width = state["own.linear.weight"].shape
        heads = cls(width, outputs)
        heads.load_state_dict(dict(state))
        return heads

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, 2, outputs] of tokens [B, 2, width]."""
        return torch.stack([self.own(tokens[:, 0]), self.taught(tokens[:, 1])], dim=1)


class Distiller(Classifier):
    """A student with two heads, and the teacher that it learns from.

    The loss is (1 - alpha) CE(own, label) + alpha T: CE(taught, argmax teacher) (hard), or
    tau^2 KL(softmax(teacher / tau) || softmax(taught / tau)) (soft). The prediction is the mean of
    both heads' softmaxes.

    Args:
        student: Of a binary, multiclass or ordinal target, whose encoder gives two tokens
            [B, 2, width] and whose head is :class:`TwoHeads`.
        mode: Whether the teacher's decision or its probabilities are learnt.
        alpha: Weight of the teacher; 0 trains the class head alone.
        tau: Temperature of soft.
    """

    def __init__(
        self, student: Classifier, *, mode: Mode = "hard", alpha: float = 0.5, tau: float = 3.0
    ) -> None:
        super().__init__(
            student.encoder,
            student.head,
            student.kind,
            label_smoothing=student.label_smoothing,
            pos_weight=student.weights[1],
            unlabelled_weight=student.weights[0],
            class_loss=student.class_loss,
            penalty=student.penalty,
        )
        self.mode, self.alpha, self.tau = mode, alpha, tau
        # In a list it is no part of the student: not saved, not counted, never in training mode.
        self._teacher: list[nn.Module] = []

    def learn_from(self, teacher: nn.Module) -> None:
        """Ask `teacher` in every step, about the keys `teacher.*` of the batch."""
        self._teacher = [teacher.eval().requires_grad_(False)]

    def forward(
        self, labels: Tensor | None = None, teacher: Tensor | None = None, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """Logits of the prediction, and the loss where labels and the teacher's answers are given.

        Args:
            labels: Classes [B].
            teacher: Its logits [B] (binary) or [B, C], computed ahead.
            **inputs: What the encoder takes, and `teacher.*` what a teacher that is asked now does.

        Returns:
            `logits`: [B] (binary) or [B, C]; `loss`: scalar.
        """
        seen = {key: inputs.pop(key) for key in list(inputs) if key.startswith(SEEN)}
        if seen:
            teacher = self._ask({key.removeprefix(SEEN): value for key, value in seen.items()})
        own, taught = self.head(self.encoder(**inputs)).unbind(dim=1)
        if self.kind == "binary":
            own, taught = own[:, 0], taught[:, 0]
        outputs = {"logits": together(own, taught)}
        if labels is not None and teacher is not None:
            loss = (1 - self.alpha) * self._loss(own, labels)
            loss = loss + self.alpha * self._lesson(taught, teacher)
            if self.training and self.penalty is not None:
                loss = loss + self.penalty()
            outputs["loss"] = loss
        return outputs

    def _ask(self, inputs: dict[str, Tensor]) -> Tensor:
        [teacher] = self._teacher
        device = next(iter(inputs.values())).device
        with torch.no_grad():
            logits: Tensor = teacher.to(device)(**inputs)["logits"]
        return logits

    def _lesson(self, taught: Tensor, teacher: Tensor) -> Tensor:
        taught, teacher = as_classes(taught.float()), as_classes(teacher.detach().float())
        if self.mode == "hard":
            return functional.cross_entropy(taught, teacher.argmax(dim=1))
        return soft(taught, teacher, self.tau)


def soft(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), the mean over the batch.

    Hinton et al., 2015; the direction is that of DeiT's code, `kl_div(student, teacher)`.

    Args:
        student: Logits [B, C].
        teacher: Logits [B, C].
        tau: Temperature.
    """
    log_student = (student / tau).log_softmax(dim=1)
    log_teacher = (teacher / tau).log_softmax(dim=1)
    loss = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return tau**2 * loss


def together(first: Tensor, second: Tensor) -> Tensor:
    """Logits whose softmax (sigmoid) is the mean of those of two heads, [B, C] or [B]."""
    parts: Any = (as_classes(logits.float()).log_softmax(dim=1) for logits in (first, second))
    log_mean = torch.logaddexp(*parts)
    return log_mean if first.ndim > 1 else log_mean[:, 1] - log_mean[:, 0]
